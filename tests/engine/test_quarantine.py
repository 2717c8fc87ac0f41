"""Deaths of workers: streams survive them, and whoever causes them is found and named."""

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


def test_a_killer_alone_on_the_server_kills_three_workers_and_no_more() -> None:
    driver = driver_on()
    driver.run([killer()])
    assert driver.finish_reasons("killer") == [FinishReason.ERROR]
    assert driver.num_deaths_alone == {"killer": 3}


def test_a_suspect_runs_alone_until_it_gets_further_and_newcomers_wait() -> None:
    driver = driver_on()
    requests = [make_request(number, ignore_eos=True) for number in range(3)]
    for request in requests[:2]:
        driver.add(request)
    for _ in range(2):  # two deaths without a token in between
        driver.send()
        driver.crash()
    driver.add(requests[2])
    rows = []
    for _ in range(3):
        driver.send()
        rows.append([row.sequence_id for row in driver.worker.plans[-1].rows])
        driver.receive()
    assert rows == [[0], [1], [0, 1, 2]]
    driver.run_to_the_end()
    assert_all_right(driver, requests)


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


def test_a_death_while_idle_is_nobodys_fault() -> None:
    driver = driver_on()
    driver.run([make_request(0)])
    for _ in range(5):
        driver.crash()
    driver.run([make_request(1)])
    assert_all_right(driver, [make_request(0), make_request(1)])
