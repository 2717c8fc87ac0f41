"""Between steps the worker does what can wait, and stops as soon as a plan comes."""

import socket

import pytest

from engine.plan import StepPlan
from engine.wire import Wire
from engine.worker.connection import Connection
from engine.worker.main import rest

pytestmark = pytest.mark.torch


class Idler:
    """A worker that has some pieces of work to do; a plan arrives during one of them."""

    def __init__(self, num_pieces: int, server: socket.socket, plan_during: int) -> None:
        self.done: list[bool] = []
        self._num_pieces = num_pieces
        self._server = server
        self._plan_during = plan_during

    def rest(self, *, is_idle: bool) -> bool:
        if len(self.done) == self._num_pieces:
            return False
        self.done.append(is_idle)
        if len(self.done) == self._plan_during:
            self._server.sendall(Wire().encode(StepPlan(step_id=1)))
        return True


@pytest.mark.parametrize(
    ("num_pieces", "plan_during", "expected"),
    [(0, 9, []), (3, 9, [False, True, True]), (9, 1, [False]), (9, 2, [False, True])],
)
def test_it_works_while_no_plan_comes(
    num_pieces: int, plan_during: int, expected: list[bool]
) -> None:
    server, worker_end = socket.socketpair()
    idler = Idler(num_pieces, server, plan_during)

    rest(idler, Connection(worker_end))  # type: ignore[arg-type]

    assert idler.done == expected
    server.close()
    worker_end.close()


def test_the_end_of_the_server_ends_the_rest() -> None:
    server, worker_end = socket.socketpair()
    server.close()
    idler = Idler(9, server, 99)

    rest(idler, Connection(worker_end))  # type: ignore[arg-type]

    assert idler.done == [False]
    worker_end.close()
