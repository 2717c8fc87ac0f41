"""Chooses tokens from logits, with the same function for exit heads and for the last layer.

Logits are processed as requests ask (see `processors`), then the argmax with counter-based noise is
taken (without noise at temperature 0). If a structure or the list of allowed tokens leaves only the
end, min_tokens and ignore_eos do not put it off. A token never depends on the other rows of the
batch. The sampling contract is in `engine.model.noise`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.model.ops.interface import Ops
from engine.worker.processors import has_processors, process
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.upload import upload, upload_all


class Sampler:
    """Chooses tokens on one backend."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def scores(
        self,
        logits: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary | None = None,
    ) -> Tensor:
        """Return processed logits [T, V'] float32; the input is not changed.

        All of a row are NaN if it allows no token, or if its own processors raised.
        """
        asking = [row for row, point in enumerate(points) if has_processors(point.state)]
        if not asking:
            return logits
        if len(asking) == len(points):
            return process(self._ops, logits.clone(), points, reduced)
        rows = upload(asking, torch.int64, logits.device)
        scores = logits.clone()
        asked = [points[row] for row in asking]
        scores[rows] = process(self._ops, logits[rows], asked, reduced)
        return scores

    def choose(self, scores: Tensor, points: Sequence[SamplePoint]) -> Tensor:
        """Launch the choice of a token per row of [T, V] scores.

        Returns:
            [T] int64, on the device; -1 for a row with NaN.
        """
        if _are_greedy(points):
            scales, keys = self._zeros(len(points))
        else:
            inverse = [point.state.inverse_temperature for point in points]
            scales, keys = upload_all(
                [(inverse, torch.float32), (_keys(points), torch.int64)], scores.device
            )
        return self._ops.sample(scores, scales, keys)

    def expect(
        self,
        scores: Tensor,
        other: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary,
        followers: Sequence[int],
    ) -> list[list[float]]:
        """Return what an exit head expects, five numbers per row: see `Ops.expect`."""
        keys: Tensor | None = None
        if _are_greedy(points):
            temperatures, columns = self._zeros(len(points))
            if any(followers):
                columns = upload(followers, torch.int64, scores.device)
        else:
            asked: list[tuple[Sequence[Any], torch.dtype]] = [
                ([point.state.sampling.temperature for point in points], torch.float32),
                (_keys(points), torch.int64),
                (followers, torch.int64),
            ]
            temperatures, keys, columns = upload_all(asked, scores.device)
        expected = self._ops.expect(scores, other, temperatures, keys, reduced.ids, columns)
        # One read, because each waits for the GPU; doubles hold column indices exactly.
        return self._ops.fetch(expected)()

    def _zeros(self, count: int) -> tuple[Tensor, Tensor]:
        """Return cached float32 and int64 zeros [count] on the device; they are read-only."""
        if count not in self._made:
            floats = torch.zeros(count, device=self._ops.device)
            self._made[count] = (floats, torch.zeros_like(floats, dtype=torch.int64))
        return self._made[count]


def _are_greedy(points: Sequence[SamplePoint]) -> bool:
    return all(point.state.is_greedy for point in points)


def _keys(points: Sequence[SamplePoint]) -> list[int]:
    return [point.state.noise_key(point.position) for point in points]
