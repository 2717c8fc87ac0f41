"""Rows 59 to 66: the contents of answers."""

from acceptance import texts
from acceptance.row import Row, row

_SCHEDULER = "tests/engine/test_scheduler.py::"

OUTPUTS: tuple[Row, ...] = (
    row(
        59,
        "emoji, CJK and Arabic split across tokens and drafts",
        "no U+FFFD; the stream's pieces make the whole answer",
        texts.characters,
    ),
    row(
        60,
        "bytes that are not text, in the middle and at the end",
        "200; U+FFFD, nothing is swallowed",
        texts.no_characters,
    ),
    row(
        61,
        "stop strings across tokens, false beginnings, overlapping, in accepted drafts, at "
        "`max_tokens`",
        "never sent, found before the length ends it; tokens, logprobs and usage end there too",
        texts.stops,
    ),
    row(
        62,
        "the end of the sequence in accepted drafts; with `min_tokens`",
        "nothing follows it; counts are exact",
        texts.ends,
    ),
    row(
        63,
        "usage: streamed or whole, n > 1, preempted, cached, drafting",
        "equal; total = prompt + completion; drafts are never counted",
        texts.counts,
    ),
    row(
        64,
        "log-probabilities with drafts; -inf",
        "one entry per token, equal with drafts and without; -9999.0",
        texts.log_probabilities,
        proofs=("tests/engine/worker/test_lossless.py::test_logprobs_are_equal_to_the_bit",),
        marks=("torch",),
    ),
    row(
        65,
        "warm and cold, prompts around a block's length, equal ones in one step, eviction, salts",
        "the same tokens; another salt finds nothing",
        texts.warm_and_cold,
        proofs=("tests/system/test_prefix_cache.py::test_warm_equals_cold",),
        marks=("torch", "model", "slow"),
    ),
    row(
        66,
        "rollback of any number of drafts at blocks' edges, preempted or aborted meanwhile",
        "what is computed is what was accepted; late results are dropped; no block is lost",
        proofs=(
            "tests/engine/test_engine_machine.py::TestEngine::runTest",
            "tests/engine/test_block_manager.py::test_any_order_of_operations_keeps_the_invariants",
            f"{_SCHEDULER}test_abort_in_flight_drops_the_result",
        ),
        note="10^5 steps and more by `make machine`.",
    ),
)
