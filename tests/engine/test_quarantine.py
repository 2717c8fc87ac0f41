"""Streams survive deaths of workers, and requests that cause them are found and named."""

import pytest
from engine_driver import EngineDriver
from fake_worker import KILLER_ID, FakeWorker, expected_output, make_request

from engine.config import SchedulerConfig
from engine.request import FinishReason, GenerationRequest


def driver_on(worker: FakeWorker | None = None) -> EngineDriver:
    return EngineDriver(worker or FakeWorker(), SchedulerConfig())


def killer(request_id: str = "killer") -> GenerationRequest:
    return GenerationRequest(request_id=request_id, prompt_token_ids=(KILLER_ID, 5))


def assert_all_right(driver: EngineDriver, requests: list[GenerationRequest]) -> None:
    for request in requests:
        assert driver.token_ids(request.request_id) == expected_output(request)
        (reason,) = driver.finish_reasons(request.request_id)
        assert reason in (FinishReason.STOP, FinishReason.LENGTH)


def rows_of_steps(driver: EngineDriver, count: int) -> list[list[int]]:
    """Run steps; return the sequences that each had."""
    rows = []
    for _ in range(count):
        driver.send()
        rows.append([row.sequence_id for row in driver.worker.plans[-1].rows])
        driver.receive()
    return rows


@pytest.mark.parametrize("steps_between", [2, 3, 7])
def test_however_often_the_worker_dies_streams_that_go_on_are_no_suspects(
    steps_between: int,
) -> None:
    driver = driver_on()
    requests = [make_request(number, ignore_eos=True) for number in range(6)]
    for request in requests:
        driver.add(request)
    for _ in range(30):
        for _ in range(steps_between):
            driver.send()
            driver.receive()
        driver.send()
        driver.crash()
    driver.run_to_the_end()
    assert_all_right(driver, requests)


@pytest.mark.parametrize("num_killers", [1, 3])
def test_killers_are_ended_by_name_and_the_others_get_their_text(num_killers: int) -> None:
    driver = driver_on()
    requests = [make_request(number) for number in range(5)]
    killers = [killer(f"killer-{number}") for number in range(num_killers)]
    driver.run([*requests[:2], *killers, *requests[2:]])
    assert_all_right(driver, requests)
    for request in killers:
        (last,) = driver.outputs[request.request_id]
        assert last.finish_reason is FinishReason.ERROR
        assert last.error is not None
    assert driver.core.num_open == 0
    driver.core.check()


@pytest.mark.parametrize("num_others", [0, 4])
def test_a_killer_kills_two_workers_and_no_more(num_others: int) -> None:
    driver = driver_on()
    requests = [make_request(number) for number in range(num_others)]
    driver.run([*requests[:2], killer(), *requests[2:]])
    assert driver.finish_reasons("killer") == [FinishReason.ERROR]
    assert driver.num_crashes == 2
    assert_all_right(driver, requests)


def test_kills_from_outside_count_less_than_crashes() -> None:
    driver = driver_on()
    request = make_request(0)
    driver.add(request)
    for _ in range(2):  # dying alone twice only makes it a suspect
        driver.send()
        driver.crash()
    driver.run_to_the_end()
    assert_all_right(driver, [request])


@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_crash_in_company_and_kills_alone_do_not_add_up(num_kills: int) -> None:
    driver = driver_on()
    requests = [make_request(0), make_request(1)]
    driver.add(requests[0])
    driver.add(killer())
    driver.send()
    driver.receive()  # both are suspects now; the innocent runs first
    for _ in range(num_kills):
        driver.send()
        driver.crash()
    driver.run([requests[1]])
    assert_all_right(driver, requests)
    assert driver.finish_reasons("killer") == [FinishReason.ERROR]


def test_who_is_killed_alone_thrice_without_a_token_is_ended() -> None:
    driver = driver_on()  # the same happens to a request that takes all memory
    driver.add(make_request(0))
    for _ in range(3):
        driver.send()
        driver.crash()
    assert driver.finish_reasons("request-0") == [FinishReason.ERROR]
    assert driver.core.num_open == 0


def test_a_suspect_runs_alone_until_it_gets_further_and_newcomers_wait() -> None:
    driver = driver_on()
    requests = [make_request(number, ignore_eos=True) for number in range(3)]
    for request in requests[:2]:
        driver.add(request)
    for _ in range(2):  # two deaths without a token in between
        driver.send()
        driver.crash()
    driver.add(requests[2])
    assert rows_of_steps(driver, 3) == [[0], [1], [0, 1, 2]]
    driver.run_to_the_end()
    assert_all_right(driver, requests)


def test_newcomers_wait_for_who_was_alone_when_a_worker_was_killed() -> None:
    driver = driver_on()
    requests = [make_request(number, ignore_eos=True) for number in range(2)]
    driver.add(requests[0])
    driver.send()
    driver.crash()
    driver.add(requests[1])
    assert rows_of_steps(driver, 2) == [[0], [0, 1]]
    driver.run_to_the_end()
    assert_all_right(driver, requests)


def test_who_goes_on_after_one_kill_in_company_is_not_preempted_for_it() -> None:
    driver = driver_on()
    requests = [make_request(number) for number in range(2)]
    for request in requests:
        driver.add(request)
    driver.send()
    driver.crash()
    driver.run_to_the_end()
    assert_all_right(driver, requests)
    assert driver.core.stats().preemptions_total == len(requests)


def test_a_suspect_whose_client_leaves_holds_nobody_up() -> None:
    driver = driver_on()
    driver.add(killer())
    driver.add(make_request(0))
    for _ in range(2):
        driver.send()
        driver.crash()
    driver.core.abort("killer")
    driver.run_to_the_end()
    assert_all_right(driver, [make_request(0)])


def test_a_chunk_of_a_prompt_is_no_progress_of_a_suspect() -> None:
    driver = EngineDriver(FakeWorker(), SchedulerConfig(max_num_batched_tokens=4))
    driver.add(make_request(0, 10))
    for _ in range(3):  # it always dies in the second chunk
        driver.send()
        driver.receive()
        driver.send()
        driver.crash()
    assert driver.finish_reasons("request-0") == [FinishReason.ERROR]


def test_who_shared_the_fatal_step_with_a_request_that_left_was_not_alone() -> None:
    driver = driver_on()
    driver.add(make_request(0))
    for number in (1, 2):  # after that it is a suspect, and alone once
        driver.add(make_request(number))
        driver.send()
        driver.core.abort(f"request-{number}")
        driver.crash()
    driver.send()
    driver.crash()
    driver.run_to_the_end()
    assert_all_right(driver, [make_request(0)])


def test_a_death_while_idle_is_nobodys_fault() -> None:
    driver = driver_on()
    driver.run([make_request(0)])
    for _ in range(5):
        driver.crash()
    driver.run([make_request(1)])
    assert_all_right(driver, [make_request(0), make_request(1)])
