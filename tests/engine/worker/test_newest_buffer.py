"""Tokens reach the device as they were when they were sent, however late the copy is made."""

import pytest
import torch
from torch import Tensor

from engine.worker.newest_buffer import NewestBuffer

pytestmark = pytest.mark.torch

SPARE_SLOT = 99


def test_tokens_and_places_arrive_and_the_rest_is_padding() -> None:
    buffer = NewestBuffer(4, SPARE_SLOT, torch.device("cpu"))
    buffer.send([7, 8, 9], ([1, 2, 3], [4, 5, 6], [0, 1, 2]))
    buffer.send(torch.tensor([-1, 5]), ([3, 4], [13, 14], [0, 1]))
    assert buffer.there.tolist() == [
        [0, 5, 0, 0],
        [3, 4, 0, 0],
        [13, 14, SPARE_SLOT, SPARE_SLOT],
        [0, 1, 0, 0],
    ]


def test_three_in_a_row_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that was launched in vain, the step's own, and the next one's."""
    buffer = NewestBuffer(1, SPARE_SLOT, torch.device("cpu"))
    queued: list[Tensor] = []
    copy = Tensor.copy_

    def queue(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            queued.append(source)
            return target
        return copy(target, source)

    monkeypatch.setattr(Tensor, "copy_", queue)
    for token_id in (5, 6, 7):
        buffer.send([token_id], ([token_id], [token_id], [0]))
    assert [source[0, 0].item() for source in queued] == [5, 6, 7]
