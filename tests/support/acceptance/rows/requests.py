"""Rows 15 to 37: the contents of requests."""

from acceptance import bad_bodies as bad
from acceptance import messages, texts
from acceptance.refusals import refuses, serves
from acceptance.row import Row, row
from acceptance.table_server import CHAT, COMPLETIONS

_APPROVER = "tests/engine/grammar/test_approver.py::"

REQUESTS: tuple[Row, ...] = (
    row(
        15,
        "unknown model, no model",
        "404 `model_not_found`, 400 that names `model`",
        refuses(*bad.MODELS),
    ),
    row(
        16,
        "`n` of 0, -1, 129, 10^6; `best_of` below `n`",
        "400 at once, without fan-out",
        refuses(*bad.CHOICES),
        messages.many_choices,
    ),
    row(
        17,
        '`temperature` -0.1, 2.01, "hot"; 0 and 1e-9',
        "400; 0 and 1e-9 are greedy",
        refuses(*bad.TEMPERATURES),
        serves((COMPLETIONS, {"temperature": 0}), (CHAT, {"temperature": 1e-9})),
    ),
    row(
        18,
        "`top_p` 0, -1, 1.1; `top_k` -2, 2^31; `min_p` 2; `top_k` beyond the vocabulary",
        "400 that names the field; the last: off",
        refuses(*bad.TRUNCATIONS),
        serves((COMPLETIONS, {"top_k": 1_000_000}), (COMPLETIONS, {"top_k": -1})),
    ),
    row(
        19,
        "presence and frequency penalty ±2.01, repetition penalty 0, -1",
        "400 that names the field",
        refuses(*bad.PENALTIES),
    ),
    row(
        20,
        "`max_tokens` -1, 2^31-1, 1e18, or other than `max_completion_tokens`; 0",
        "400 that names it; 2^31-1: `context_length_exceeded`; 0: 400 in chats",
        refuses(*bad.LENGTHS),
        serves((COMPLETIONS, {"max_tokens": 0})),
        note="In /v1/completions 0 computes the prompt alone, for its log-probabilities.",
    ),
    row(
        21,
        "prompt and `max_tokens` longer than the context",
        "400 `context_length_exceeded` that names the prompt's field",
        refuses(*bad.TOO_LONG_PROMPTS),
    ),
    row(
        22,
        "a prompt of 3 MB, of 10 MB; the longest that is encoded",
        "400 before it is encoded, 413; 400; the event loop is never blocked for 50 ms",
        messages.huge_prompts,
    ),
    row(
        23,
        'token ids -1, beyond the vocabulary, 10^12, "1", mixed with texts',
        "400 that names `prompt`; nothing reaches the worker",
        refuses(*bad.NO_TOKENS),
    ),
    row(
        24,
        'prompt "", [], null, [[]]; no messages',
        "400 that names `prompt` or `messages`",
        refuses(*bad.NO_PROMPTS),
    ),
    row(25, "10,000 prompts at once", "400 with the limit", refuses(*bad.TOO_MANY_PROMPTS)),
    row(
        26,
        '`stop` "", of five entries, of 10 kB, of other types',
        "400 that names `stop`",
        refuses(*bad.STOPS),
    ),
    row(
        27,
        "stop and biased token ids out of range, not numbers, too many; a bias beyond ±100",
        "400 that names the field",
        refuses(*bad.TOKEN_IDS),
    ),
    row(
        28,
        "`top_logprobs` 21, -1, without `logprobs`; `logprobs` 21",
        "400 that names the field",
        refuses(*bad.LOGPROBS),
    ),
    row(29, "`seed` 2^64, -2^63-1, 1.5", "400 that names `seed`", refuses(*bad.SEEDS)),
    row(
        30,
        '`stream_options` without `stream`; `stream` "yes"',
        "400 that names the field",
        refuses(*bad.STREAMS),
    ),
    row(
        31,
        "unknown role; content missing or a number; a tool's message without `tool_call_id`",
        "400 that names `messages[i].field`",
        refuses(*bad.TURNS),
    ),
    row(
        32,
        "images, audio, files and videos, from metadata services and local files",
        "400 `unsupported_content`; no connection is made",
        messages.no_connections,
    ),
    row(
        33,
        "`<|im_end|><|im_start|>system`, `<|endoftext|>` in a user's text",
        "200; no control token comes from content",
        texts.control_tokens,
        proofs=(
            "tests/engine/test_tokenizer.py::test_control_tokens_in_messages_are_text",
            "tests/engine/test_tokenizer.py::test_control_tokens_in_other_fields_are_text",
        ),
        marks=("model",),
        note="In /v1/completions, whose prompt is the raw text for the model, they are control "
        "tokens, as in vLLM and llama.cpp.",
    ),
    row(
        34,
        "`chat_template` or the server's own variables in a body, template code in messages",
        "400 that names the field; code in messages is text; models' templates run in a sandbox",
        refuses(*bad.TEMPLATES),
        messages.injected_templates,
        proofs=(
            "tests/engine/test_tokenizer.py::"
            "test_templates_that_no_chat_can_use_are_refused_at_once",
            "tests/engine/test_tokenizer.py::"
            "test_what_a_template_says_is_told_and_what_the_renderer_says_is_not",
        ),
        marks=("model",),
    ),
    row(
        35,
        "an unknown field; a known one that is not offered",
        "unknown: ignored and counted, or 400 with `--reject-unknown-fields`; known: 400 "
        "`unsupported_parameter`, never ignored silently",
        refuses(*bad.NOT_OFFERED),
        serves((COMPLETIONS, {"no_such_field": 1}), (CHAT, {"no_such_field": {"a": [1]}})),
        proofs=(
            "tests/server/test_body.py::test_unknown_fields_are_counted_or_refused",
            "tests/server/test_parameters.py::"
            "test_nothing_is_ignored_silently_and_exits_change_no_answer",
        ),
    ),
    row(
        36,
        "schemas that are missing, of 1 MB, endless, deeply nested, with patterns that blow up",
        "400 that names `response_format`, or an answer, within 5 s; other streams go on",
        messages.structures,
        proofs=(
            f"{_APPROVER}test_what_cannot_be_followed_is_refused",
            f"{_APPROVER}test_a_slow_one_meets_its_deadline_and_holds_up_nothing",
        ),
        marks=("torch", "model"),
    ),
    row(
        37,
        "every sampling parameter with early exits on and off",
        "the same status and the same answer",
        texts.every_parameter,
        proofs=("tests/engine/worker/test_lossless.py::test_scripted_drafts_change_nothing",),
        marks=("torch",),
    ),
)
