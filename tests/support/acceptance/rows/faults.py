"""Rows 52 to 58: faults of the server, its worker, or their surroundings."""

from acceptance import faults, texts
from acceptance.row import Row, row

_SERVER = "tests/server/test_http_server.py::"
_PROCESS = "tests/engine/test_worker_process.py::"
_ROW_FAULTS = "tests/engine/worker/test_row_faults.py::"
_SCHEDULER = "tests/engine/test_scheduler.py::"
_BOTH = "tests/system/test_processes.py::"

FAULTS: tuple[Row, ...] = (
    row(
        52,
        "one row fails: sampler, result, logits that are not numbers",
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
    row(
        53,
        "out of memory in a forward pass",
        "computed in smaller batches; only a row that never fits fails",
        proofs=(
            f"{_ROW_FAULTS}test_what_does_not_fit_together_is_computed_in_parts",
            f"{_ROW_FAULTS}test_only_the_row_that_never_fits_fails",
        ),
        marks=("torch",),
        note="Out of memory is raised by these tests; "
        "tests/engine/worker/test_cuda_faults.py fills a GPU.",
    ),
    row(
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
        "as CUDA words it; tests/engine/worker/test_cuda_faults.py breaks a GPU.",
    ),
    row(
        55,
        "the worker hangs",
        "it is replaced after `--heartbeat-timeout`, then as row 54",
        proofs=(
            f"{_PROCESS}test_a_stopped_worker_is_killed_for_its_silence",
            f"{_PROCESS}test_a_step_that_never_ends_is_ended_though_the_heart_beats",
            "tests/system/test_recovery.py::test_a_stopped_worker_costs_a_pause_and_no_token",
        ),
        marks=("torch", "model", "slow"),
    ),
    row(
        56,
        "the server is killed",
        "the worker ends too, and with it the memory of its device",
        proofs=(
            f"{_PROCESS}test_a_worker_does_not_outlive_its_server",
            f"{_BOTH}test_a_worker_that_loads_does_not_outlive_a_killed_server",
        ),
        marks=("torch", "model", "slow"),
    ),
    row(
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
    row(
        58,
        "a stream is silent for a long time",
        "`: keep-alive` every 15 s (0.1 s here); OpenAI's client does not mind",
        texts.silence,
    ),
)
