"""Rows 38 to 51: models that may be served, admission, and clients that leave."""

from acceptance import departures, loading, overload
from acceptance.row import Row, row

_HTTP = "tests/server/test_http_protocol.py::"
_SCHEDULER = "tests/engine/test_scheduler.py::"
_CORE = "tests/engine/test_core.py::"

ADMISSION: tuple[Row, ...] = (
    row(
        38,
        "a model directory with pickles, `auto_map`, a template that reaches out of its sandbox",
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
    row(
        39,
        "a full queue, in requests and in prompt tokens",
        "503 `server_is_overloaded` with Retry-After in 50 ms; what was taken finishes",
        overload.full_queue,
        proofs=(
            "tests/server/test_admission.py::test_a_full_queue_refuses_before_the_body_is_read",
        ),
        note="The median of ten by the server's own clock here; by percentiles, with 5,000 idle "
        "connections, by `make overload`.",
    ),
    row(
        40,
        "more open requests of one key than allowed",
        "429 `rate_limit_exceeded` with Retry-After; other keys are served",
        overload.one_keys_share,
    ),
    row(
        41,
        "four choices where there is room for three",
        "503; none is queued",
        overload.all_or_nothing,
        proofs=(f"{_CORE}test_requests_are_added_all_or_none",),
    ),
    row(
        42,
        "too long in the queue",
        "503 `queue_timeout` before any header",
        overload.time_in_the_queue,
    ),
    row(
        43,
        "the total deadline passes in mid-stream",
        "an error event `timeout`, then [DONE]; blocks are free",
        overload.time_in_all,
    ),
    row(
        44,
        "within the model's context, but more than all blocks hold",
        "400 at admission; never waits",
        overload.what_never_fits,
    ),
    row(
        45,
        "fifty long requests where there is room for five",
        "all finish with the text each has alone; the first by rank is never preempted",
        overload.a_tenth_of_the_memory,
        proofs=(
            "tests/engine/test_engine_machine.py::TestEngine::runTest",
            f"{_SCHEDULER}test_the_youngest_gives_way_and_comes_back_with_all_its_tokens",
        ),
    ),
    row(
        46,
        "a client leaves the queue",
        "not one of its tokens is computed",
        departures.in_the_queue,
    ),
    row(
        47,
        "a client leaves in prefill, decode, verification, before [DONE]",
        "all is free within a second; others are not disturbed",
        departures.at_any_moment,
    ),
    row(
        48,
        "a client that waits for a whole answer leaves",
        "aborted within a second, logged as 499",
        departures.without_a_stream,
    ),
    row(
        49,
        "abort before, twice, after the end; given up after 15 and 19 ms and sent again",
        "idempotent, nothing leaks; repeated and unrelated requests are right",
        departures.again_and_again,
        proofs=(
            f"{_CORE}test_abort_is_idempotent_in_every_state",
            f"{_CORE}test_aborted_between_commit_and_render_and_added_again",
        ),
    ),
    row(
        50,
        "the client of four choices leaves; some choices end early",
        "all are free; every choice has one finish reason",
        departures.of_several_choices,
    ),
    row(
        51,
        "a reader stops reading",
        "dropped after `--write-timeout`; others are not disturbed",
        departures.without_reading,
        proofs=(f"{_HTTP}test_a_client_that_reads_nothing_is_dropped_and_its_request_ended",),
    ),
)
