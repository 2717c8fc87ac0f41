"""Logits -> tokens, the same function for exit heads and for the last layer.

What requests ask of their logits (see `processors`), then argmax with counter-based noise (none at
temperature 0). Where a structure, or the list of allowed tokens, leaves only the end, min_tokens
and ignore_eos do not put it off. A token never depends on who shares its batch. See the sampling
contract in `engine.model.noise`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.noise import noise_key
from engine.model.ops.interface import Ops
from engine.request import TokenLogprobs
from engine.worker.processors import has_processors, process
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.sequence_state import SequenceState


class Sampler:
    """Chooses tokens on one backend."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def scores(
        self,
        logits: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary | None = None,
    ) -> Tensor:
        """Processed logits [T, V'] float32; the input is left as it is. All of a row are NaN if its
        own processors raised.
        """
        asking = [row for row, point in enumerate(points) if has_processors(point.state)]
        if not asking:
            return logits
        if len(asking) == len(points):
            return process(logits, points, reduced)
        rows = torch.tensor(asking, device=logits.device)
        scores = logits.clone()
        scores[rows] = process(logits[rows], [points[row] for row in asking], reduced)
        return scores

    def choose(
        self,
        scores: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary | None = None,
    ) -> list[int]:
        """Column chosen per row; -1 for a row with NaN."""
        device = scores.device
        inverse = [_inverse_temperature(point.state) for point in points]
        keys = [noise_key(point.state.start.seed, point.position) for point in points]
        chosen = self._ops.sample(
            scores,
            torch.tensor(inverse, dtype=torch.float32, device=device),
            torch.tensor(keys, dtype=torch.int64, device=device),
            None if reduced is None else reduced.token_ids,
        )
        return chosen.tolist()


def top_logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of one position from its unprocessed logits [V]."""
    logprobs = logits.log_softmax(-1)
    logprob = logprobs[token_id]
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    # One read, because a GPU is waited for each time; doubles hold all of it as it is.
    own = torch.stack((logprob.double(), (logprobs >= logprob).sum().double()))
    own_logprob, rank, *rest = torch.cat((own, ids.double(), values.double())).tolist()
    top_ids, top_values = rest[: len(ids)], rest[len(ids) :]
    return TokenLogprobs(
        token_id=token_id,
        logprob=own_logprob,
        top=tuple((int(i), value) for i, value in zip(top_ids, top_values, strict=True)),
        rank=int(rank),
    )


def _inverse_temperature(state: SequenceState) -> float:
    return 0.0 if state.is_greedy else 1.0 / state.start.temperature
