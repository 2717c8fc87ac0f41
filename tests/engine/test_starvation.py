"""No request waits for ever: not for newcomers, not for memory, and not while workers keep dying.

Clients send one request after another. More are open than can run together, the KV cache is too
small for those that run, and workers die at regular intervals. The first request by rank always
makes progress, so that every request becomes the first in time.
"""

import random
from collections import Counter

import pytest
from engine_driver import EngineDriver
from fake_worker import FakeWorker, expected_output, make_request

from engine.config import SchedulerConfig
from engine.request import FinishReason, GenerationRequest

_NUM_CLIENTS = 8
_NUM_STEPS = 400
# Steps without a token for the first by rank: those of its prefill, or of suspects that run alone.
_LONGEST_PAUSE = 8
_LONGEST_LIFE = 200  # steps from a request to its end, where workers die most often


class _Clients:
    """Clients each of which sends a new request as soon as its last one has ended."""

    def __init__(self, driver: EngineDriver) -> None:
        self.open: dict[str, GenerationRequest] = {}  # in order of rank
        self.answers: Counter[FinishReason] = Counter()
        self.longest_life = 0
        self._driver = driver
        self._random = random.Random(0)
        self._asked_at: dict[str, int] = {}

    def ask(self, step: int) -> None:
        while len(self.open) < _NUM_CLIENTS:
            request = make_request(
                len(self._asked_at),
                self._random.randint(4, 20),
                max_tokens=self._random.randint(1, 12),
                ignore_eos=True,
            )
            self.open[request.request_id] = request
            self._asked_at[request.request_id] = step
            self._driver.add(request)

    def read(self, step: int) -> None:
        for name, request in list(self.open.items()):
            for reason in self._driver.finish_reasons(name):
                assert self._driver.token_ids(name) == expected_output(request)
                self.answers[reason] += 1
                self.longest_life = max(self.longest_life, step - self._asked_at[name])
                del self.open[name]


@pytest.mark.parametrize("steps_per_worker", [4, 5, 7, 12, 30, 10 * _NUM_STEPS])
def test_whoever_is_first_gets_on_until_it_is_answered(steps_per_worker):
    worker = FakeWorker(num_blocks=10, acceptance=0.5, max_draft_tokens=2)
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=12)
    driver = EngineDriver(worker, config)
    clients = _Clients(driver)
    progress, pause = ("", 0), 0
    for step in range(1, _NUM_STEPS):
        clients.ask(step)
        driver.send()
        if step % steps_per_worker == 0:
            driver.crash()
        else:
            driver.receive()
        driver.render()
        first = next(iter(clients.open))
        before, progress = progress, (first, len(driver.token_ids(first)))
        pause = pause + 1 if progress == before else 0
        assert pause <= _LONGEST_PAUSE, "the first by rank does not get on"
        clients.read(step)

    assert set(clients.answers) == {FinishReason.LENGTH}
    assert clients.answers.total() > _NUM_STEPS // 10
    assert clients.longest_life < _LONGEST_LIFE
