"""The table."""

from acceptance import bad_bodies as bad
from acceptance import (
    departures,
    faults,
    heads,
    hygiene,
    loading,
    messages,
    overload,
    texts,
)
from acceptance.refusals import refuses, serves
from acceptance.row import Check, Row
from acceptance.table_server import CHAT, COMPLETIONS

_HTTP = "tests/server/test_http_protocol.py::"
_SERVER = "tests/server/test_http_server.py::"
_PROCESS = "tests/engine/test_worker_process.py::"
_ROW_FAULTS = "tests/engine/worker/test_row_faults.py::"
_SCHEDULER = "tests/engine/test_scheduler.py::"
_APPROVER = "tests/engine/grammar/test_approver.py::"
_BOTH = "tests/system/test_processes.py::"
_CORE = "tests/engine/test_core.py::"


def _row(number: int, fault: str, expected: str, *checks: Check, **more: object) -> Row:
    return Row(number=number, fault=fault, expected=expected, checks=checks, **more)  # type: ignore[arg-type]


ROWS: tuple[Row, ...] = (
    _row(
        1,
        "truncated JSON, empty body, trailing bytes, UTF-16, byte order mark",
        "400 `invalid_json`",
        refuses(*bad.NO_JSON),
    ),
    _row(
        2,
        "NaN, ±Infinity, 1e400 in any number, also in `logit_bias`",
        "400 that names the field",
        refuses(*bad.NO_NUMBERS),
    ),
    _row(
        3,
        "JSON nested 2,000 and 200,000 deep, a tool's schema 1,000 deep",
        "400; the event loop never stands still for 50 ms",
        messages.deep_bodies,
    ),
    _row(
        4,
        "half a surrogate pair, invalid UTF-8; NUL in a prompt",
        "400 `invalid_json`; NUL: 200",
        refuses(*bad.NO_TEXT),
        serves((COMPLETIONS, {"prompt": "a\0b"})),
    ),
    _row(
        5,
        '`n` of 10^18, "3", true, 1.0, 5,000 digits; the same of other integers',
        "400 that names the field",
        refuses(*bad.NO_INTEGERS),
        note="A number of more than 4,300 digits is no JSON to the parser: 400 `invalid_json` "
        "without a name.",
    ),
    _row(6, 'body `[1]`, `null`, `"x"`', "400", refuses(*bad.NO_OBJECTS)),
    _row(
        7,
        "no or another Content-Type, multipart, a gzip bomb",
        "415; nothing is unpacked",
        heads.content_types,
    ),
    _row(
        8,
        "body beyond the limit, with a length and chunked; of a quarter million values",
        "413 `request_too_large`; memory grows by less than twice the limit; the event loop never "
        "stands still for 50 ms",
        heads.large_bodies,
        messages.many_values,
        proofs=("tests/server/test_body.py::test_bodies_of_too_many_values_are_refused",),
    ),
    _row(
        9,
        "headers of 70 KB to 2 MB, 500 headers, a million chunks of 6 bytes",
        "431, 400 or a closed connection; memory stays flat",
        heads.large_heads,
        proofs=(
            f"{_HTTP}test_large_heads_are_refused",
            f"{_HTTP}test_many_headers_are_refused_by_name",
            f"{_HTTP}test_a_flood_of_tiny_chunks_is_refused_and_ordinary_chunks_are_not",
        ),
    ),
    _row(
        10,
        "heads and bodies that drip in, on 1,000 connections",
        "closed in time (10 s and 30 s; 0.5 s here), bodies with 408; others do not notice",
        heads.slow_clients,
        proofs=(
            f"{_HTTP}test_a_head_that_drips_in_is_cut_off",
            f"{_HTTP}test_a_connection_that_says_nothing_is_closed",
            f"{_HTTP}test_an_answered_request_whose_body_drips_on_is_cut_off",
            f"{_HTTP}test_a_body_that_drips_in_is_answered_408",
        ),
    ),
    _row(
        11,
        "Host `a/v1/models?`, absolute-form target, `//v1`, `/v1/../health`, `%2e`",
        "401 all the same",
        heads.odd_targets,
    ),
    _row(
        12,
        "unknown path, wrong method",
        "404, 405 in OpenAI's envelope",
        heads.unknown_routes,
    ),
    _row(
        13,
        "key missing, wrong, empty, in another case, a prefix of one, another scheme",
        "401 `invalid_api_key` on every route but the probes and the page's files",
        heads.keys,
    ),
    _row(
        14,
        "X-Request-Id of 5 KB, with CRLF, with other letters; the same twice at once",
        "echoed in 128 safe characters; both are served, each with its own text",
        heads.request_ids,
    ),
    _row(
        15,
        "unknown model, no model",
        "404 `model_not_found`, 400 that names `model`",
        refuses(*bad.MODELS),
    ),
    _row(
        16,
        "`n` of 0, -1, 129, 10^6; `best_of` below `n`",
        "400 at once, without fan-out",
        refuses(*bad.CHOICES),
        messages.many_choices,
    ),
    _row(
        17,
        '`temperature` -0.1, 2.01, "hot"; 0 and 1e-9',
        "400; 0 and 1e-9 are greedy",
        refuses(*bad.TEMPERATURES),
        serves((COMPLETIONS, {"temperature": 0}), (CHAT, {"temperature": 1e-9})),
    ),
    _row(
        18,
        "`top_p` 0, -1, 1.1; `top_k` -2, 2^31; `min_p` 2; `top_k` beyond the vocabulary",
        "400 that names the field; the last: off",
        refuses(*bad.TRUNCATIONS),
        serves((COMPLETIONS, {"top_k": 1_000_000}), (COMPLETIONS, {"top_k": -1})),
    ),
    _row(
        19,
        "presence and frequency penalty ±2.01, repetition penalty 0, -1",
        "400 that names the field",
        refuses(*bad.PENALTIES),
    ),
    _row(
        20,
        "`max_tokens` -1, 2^31-1, 1e18, or other than `max_completion_tokens`; 0",
        "400 that names it; 2^31-1: `context_length_exceeded`; 0: 400 in chats",
        refuses(*bad.LENGTHS),
        serves((COMPLETIONS, {"max_tokens": 0})),
        note="In /v1/completions 0 computes the prompt alone, for its log-probabilities.",
    ),
    _row(
        21,
        "prompt and `max_tokens` longer than the context",
        "400 `context_length_exceeded` that names the prompt's field",
        refuses(*bad.TOO_LONG_PROMPTS),
    ),
    _row(
        22,
        "a prompt of 3 MB, of 10 MB",
        "400 before it is encoded, 413; the event loop never stands still for 50 ms",
        messages.huge_prompts,
    ),
    _row(
        23,
        'token ids -1, beyond the vocabulary, 10^12, "1", mixed with texts',
        "400 that names `prompt`; nothing reaches the worker",
        refuses(*bad.NO_TOKENS),
    ),
    _row(
        24,
        'prompt "", [], null, [[]]; no messages',
        "400 that names `prompt` or `messages`",
        refuses(*bad.NO_PROMPTS),
    ),
    _row(25, "10,000 prompts at once", "400 with the limit", refuses(*bad.TOO_MANY_PROMPTS)),
    _row(
        26,
        '`stop` "", of five entries, of 10 kB, of other types',
        "400 that names `stop`",
        refuses(*bad.STOPS),
    ),
    _row(
        27,
        "stop and biased token ids out of range, no numbers, too many; a bias beyond ±100",
        "400 that names the field",
        refuses(*bad.TOKEN_IDS),
    ),
    _row(
        28,
        "`top_logprobs` 21, -1, without `logprobs`; `logprobs` 21",
        "400 that names the field",
        refuses(*bad.LOGPROBS),
    ),
    _row(29, "`seed` 2^64, -2^63-1, 1.5", "400 that names `seed`", refuses(*bad.SEEDS)),
    _row(
        30,
        '`stream_options` without `stream`; `stream` "yes"',
        "400 that names the field",
        refuses(*bad.STREAMS),
    ),
    _row(
        31,
        "unknown role; content missing or a number; a tool's message without `tool_call_id`",
        "400 that names `messages[i].field`",
        refuses(*bad.TURNS),
    ),
    _row(
        32,
        "images, sounds, files and videos, of metadata services and local files",
        "400 `unsupported_content`; no connection is made",
        messages.no_connections,
    ),
    _row(
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
    _row(
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
    _row(
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
    _row(
        36,
        "schemas that are missing, of 1 MB, endless, deeply nested, with patterns that explode",
        "400 that names `response_format`, or an answer, within 5 s; other streams go on",
        messages.structures,
        proofs=(
            f"{_APPROVER}test_what_cannot_be_followed_is_refused",
            f"{_APPROVER}test_a_slow_one_meets_its_deadline_and_holds_up_nothing",
        ),
        marks=("torch", "model"),
    ),
    _row(
        37,
        "every sampling parameter with early exits on and off",
        "the same status and the same answer",
        texts.every_parameter,
        proofs=("tests/engine/worker/test_lossless.py::test_scripted_drafts_change_nothing",),
        marks=("torch",),
    ),
    _row(
        38,
        "a model directory with pickles, `auto_map`, a template that reaches out",
        "refused at start-up; no code runs",
        loading.models_with_code,
        proofs=(
            "tests/engine/checkpoint/test_directory.py::test_remote_code_is_refused",
            "tests/engine/checkpoint/test_directory.py::test_pickle_weights_are_refused_by_name",
            "tests/server/test_serve.py::"
            "test_a_model_that_cannot_be_served_is_one_line_and_status_1",
        ),
        marks=("slow",),
    ),
    _row(
        39,
        "a full queue, in requests and in prompt tokens",
        "503 `server_is_overloaded` with Retry-After in 50 ms; what was taken finishes",
        overload.full_queue,
        proofs=(
            "tests/server/test_admission.py::test_a_full_queue_refuses_before_the_body_is_read",
        ),
    ),
    _row(
        40,
        "more open requests of one key than allowed",
        "429 `rate_limit_exceeded` with Retry-After; other keys are served",
        overload.one_keys_share,
    ),
    _row(
        41,
        "four choices where there is room for three",
        "503; none is queued",
        overload.all_or_nothing,
        proofs=(f"{_CORE}test_requests_are_added_all_or_none",),
    ),
    _row(
        42,
        "too long in the queue",
        "503 `queue_timeout` before any header",
        overload.time_in_the_queue,
    ),
    _row(
        43,
        "the total deadline in mid-stream",
        "an error event `timeout`, then [DONE]; blocks are free",
        overload.time_in_all,
    ),
    _row(
        44,
        "within the model's context, but more than all blocks hold",
        "400 at admission; never waits",
        overload.what_never_fits,
    ),
    _row(
        45,
        "fifty long requests where there is room for five",
        "all finish with the text each has alone; the first by rank is never preempted",
        overload.a_tenth_of_the_memory,
        proofs=(
            "tests/engine/test_engine_machine.py::TestEngine::runTest",
            f"{_SCHEDULER}test_the_youngest_gives_way_and_comes_back_with_all_its_tokens",
        ),
    ),
    _row(
        46,
        "a client leaves the queue",
        "not one of its tokens is computed",
        departures.in_the_queue,
    ),
    _row(
        47,
        "a client leaves in prefill, decode, verification, before [DONE]",
        "all is free within a second; others are not disturbed",
        departures.at_any_moment,
    ),
    _row(
        48,
        "a client leaves that waits for a whole answer",
        "aborted within a second, logged as 499",
        departures.without_a_stream,
    ),
    _row(
        49,
        "abort before, twice, after the end; given up after 15 and 19 ms and sent again",
        "idempotent, nothing leaks; repeated and unrelated requests are right",
        departures.again_and_again,
        proofs=(
            f"{_CORE}test_abort_is_idempotent_in_every_state",
            f"{_CORE}test_aborted_between_commit_and_render_and_added_again",
        ),
    ),
    _row(
        50,
        "the client of four choices leaves; some choices end early",
        "all are free; every choice has one finish reason",
        departures.of_several_choices,
    ),
    _row(
        51,
        "a reader stops reading",
        "given up after `--write-timeout`; others are not disturbed",
        departures.without_reading,
        proofs=(f"{_HTTP}test_a_client_that_reads_nothing_is_dropped_and_its_request_ended",),
    ),
    _row(
        52,
        "one row fails: sampler, result, logits that are no numbers",
        "that request ends with `request_failed`; its blocks are not cached; the rest go on",
        faults.one_row,
        proofs=(
            f"{_ROW_FAULTS}test_a_fault_in_one_rows_processors_is_its_own",
            f"{_ROW_FAULTS}test_a_fault_in_one_rows_result_is_its_own",
            f"{_ROW_FAULTS}test_logits_that_are_not_numbers_end_their_row_only",
            f"{_SCHEDULER}test_a_row_that_fails_takes_its_blocks_out_of_the_cache",
        ),
        marks=("torch",),
    ),
    _row(
        53,
        "out of memory in a forward pass",
        "computed in smaller batches; only a row that never fits fails",
        proofs=(
            f"{_ROW_FAULTS}test_what_does_not_fit_together_is_computed_in_parts",
            f"{_ROW_FAULTS}test_only_the_row_that_never_fits_fails",
        ),
        marks=("torch",),
        note="Out of memory is raised by the test; no GPU has run out of its own here.",
    ),
    _row(
        54,
        "the worker is killed, or a device fails, under open streams",
        "streams go on with the next worker, to the token; `/health` 200, `/ready` 503; new "
        "requests wait",
        faults.deaths_of_workers,
        faults.a_killer,
        proofs=(
            f"{_PROCESS}test_streams_survive_kills_and_killers_are_named",
            f"{_PROCESS}test_a_step_that_raises_is_an_engine_failure",
            f"{_ROW_FAULTS}test_a_broken_device_is_nobodys_row_fault",
            f"{_BOTH}test_workers_that_die_at_every_start_end_the_server_and_it_says_why",
            "tests/system/test_recovery.py::test_no_stream_notices_two_kills",
        ),
        marks=("torch", "model", "slow"),
        note="Better than an error event: nothing is lost. A device assert is raised by the test, "
        "as CUDA words it; no GPU has failed here.",
    ),
    _row(
        55,
        "the worker stands still",
        "it is replaced after `--heartbeat-timeout`, then as row 54",
        proofs=(
            f"{_PROCESS}test_a_stopped_worker_is_killed_for_its_silence",
            f"{_PROCESS}test_a_step_that_never_ends_is_ended_though_the_heart_beats",
            "tests/system/test_recovery.py::test_a_stopped_worker_costs_a_pause_and_no_token",
        ),
        marks=("torch", "model", "slow"),
    ),
    _row(
        56,
        "the server is killed",
        "the worker ends too, and with it the memory of its device",
        proofs=(
            f"{_PROCESS}test_a_worker_does_not_outlive_its_server",
            f"{_BOTH}test_a_worker_that_loads_does_not_outlive_a_killed_server",
        ),
        marks=("torch", "model", "slow"),
    ),
    _row(
        57,
        "SIGTERM with open requests; twice; `--shutdown-timeout 0`",
        "new ones 503 `shutting_down`, open ones finish in time or end with an error; exit 0",
        proofs=(
            f"{_SERVER}test_at_sigterm_open_requests_finish_and_new_ones_are_refused",
            f"{_SERVER}test_what_outlives_the_drain_ends_with_an_error",
            f"{_SERVER}test_a_second_signal_does_not_wait",
            f"{_SERVER}test_an_idle_server_stops_at_once",
            f"{_BOTH}test_sigterm_ends_both",
        ),
        marks=("model", "slow"),
    ),
    _row(
        58,
        "a stream is silent for long",
        "`: keep-alive` every 15 s; OpenAI's client does not mind",
        texts.silence,
    ),
    _row(
        59,
        "emoji, CJK and Arabic cut over tokens and drafts",
        "no U+FFFD; the stream's pieces make the whole answer",
        texts.characters,
    ),
    _row(
        60,
        "bytes that are no text, in the middle and at the end",
        "200; U+FFFD, nothing is swallowed",
        texts.no_characters,
    ),
    _row(
        61,
        "stop strings over tokens, false beginnings, overlapping, in accepted drafts, at "
        "`max_tokens`",
        "never sent, found before the length ends it; tokens, logprobs and usage end there too",
        texts.stops,
    ),
    _row(
        62,
        "the end of the sequence in accepted drafts; with `min_tokens`",
        "nothing follows it; counts are exact",
        texts.ends,
    ),
    _row(
        63,
        "usage: streamed or whole, n > 1, preempted, cached, drafting",
        "equal; total = prompt + completion; drafts are never counted",
        texts.counts,
    ),
    _row(
        64,
        "log-probabilities with drafts; -inf",
        "one entry per token, equal with drafts and without; -9999.0",
        texts.log_probabilities,
        proofs=("tests/engine/worker/test_lossless.py::test_logprobs_are_equal_to_the_bit",),
        marks=("torch",),
    ),
    _row(
        65,
        "warm and cold, prompts around a block's length, equal ones in one step, eviction, salts",
        "the same tokens; another salt finds nothing",
        texts.warm_and_cold,
        proofs=("tests/system/test_prefix_cache.py::test_warm_equals_cold",),
        marks=("torch", "model", "slow"),
    ),
    _row(
        66,
        "rollback of any number of drafts at blocks' edges, preempted or aborted meanwhile",
        "what is computed is what was accepted; late results are dropped; no block is lost",
        proofs=(
            "tests/engine/test_engine_machine.py::TestEngine::runTest",
            "tests/engine/test_block_manager.py::test_any_order_of_operations_keeps_the_invariants",
            f"{_SCHEDULER}test_abort_in_flight_drops_the_result",
        ),
        note="10^5 steps and more by `make nightly`.",
    ),
    _row(
        67,
        "mixed requests, a third given up",
        "nothing leaks, nothing hangs, no status is unexplained",
        hygiene.mixed_traffic,
        note="300 requests here; hours of them, with worker kills, by `make soak`; ten thousand "
        "odd ones by `make fuzz`.",
    ),
    _row(
        68,
        "CRLF in any field, a model name of 1 MB, exceptions with paths",
        "one escaped line per request; a closed set of series; bodies without paths",
        hygiene.logs_and_metrics,
        hygiene.unexpected_errors,
    ),
    _row(
        69,
        "a replica of Ray Serve dies, its queue is full, its proxy cancels",
        "does not apply",
        note="This server does not run inside Ray Serve: it has no replicas and no router. What a "
        "router in front of it needs is there: refusals with Retry-After before any header "
        "(rows 39 and 42), `/ready` for draining (57), streams that go on when a worker dies "
        "(54), and requests that end with their connection (46 to 48).",
    ),
    _row(
        70,
        "more idle connections than allowed; scrapes all the while",
        "503 in the envelope; probes and `/metrics` are answered at once",
        overload.idle_connections,
        proofs=(f"{_HTTP}test_beyond_the_limit_only_probes_are_answered",),
        note="100 connections here, 5,000 by `adadecode bench overload`.",
    ),
)
