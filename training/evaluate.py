"""Measures a head on held-out positions: agreement with the last layer, calibration, and agreement
by draft position.

Everything is teacher-forced: no engine runs and nothing is timed (`adadecode bench latency` does).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.exit_head import Calibration
from engine.model.noise import DRAFT_WEIGHT, gumbel
from training.head_module import HeadModule
from training.states import HiddenStates, StateSource
from training.train_head import teacher_probs, unrolled

BIN_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SAMPLED_TEMPERATURE = 0.8
_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFigures:
    """Figures of one head on held-out positions."""

    agreement: float  # head's top-1 == last layer's top-1, true previous state
    agreement_by_draft: Sequence[float]  # of draft 1, 2, …, where all drafts before it agreed
    confident_share: float  # positions with confidence > 0.5
    confident_agreement: float  # agreement among them
    calibration: Calibration
    num_positions: int

    def summary(self) -> str:
        """Return the figures as one line for people to read."""
        return (
            f"agreement {self.agreement:.3f}, by draft {list(self.agreement_by_draft)}; "
            f"confident on {self.confident_share:.2f} of positions, right on "
            f"{self.confident_agreement:.3f} of them ({self.num_positions} positions)"
        )


@torch.inference_mode()
def evaluate_head(
    head: HeadModule, shards: StateSource, token_ids: Tensor, *, depth: int = 5
) -> HeadFigures:
    """Measure a head.

    Args:
        token_ids: [V'], the reduced vocabulary.
        depth: Draft positions to unroll.
    """
    greedy, sampled = [], []
    by_draft: list[list[Tensor]] = [[] for _ in range(depth)]
    for states, start in _starts(shards, depth):
        part = _unrolled(head, states, token_ids, start, depth)
        greedy.append(part.greedy)
        sampled.append(part.sampled)
        for kept, outcomes in zip(by_draft, part.by_draft, strict=True):
            kept.append(outcomes)
    greedy_all, sampled_all = torch.cat(greedy), torch.cat(sampled)
    confident = greedy_all[greedy_all[:, 0] > 0.5]
    return HeadFigures(
        agreement=_mean(greedy_all[:, 1]),
        agreement_by_draft=[_mean(torch.cat(outcomes)) for outcomes in by_draft],
        confident_share=len(confident) / max(1, len(greedy_all)),
        confident_agreement=_mean(confident[:, 1]),
        calibration=Calibration(
            edges=BIN_EDGES, greedy=rates(greedy_all), sampled=rates(sampled_all)
        ),
        num_positions=len(greedy_all),
    )


def _starts(shards: StateSource, depth: int) -> Iterator[tuple[HiddenStates, int]]:
    for states in shards.groups():
        for start in range(0, len(states.last) - depth - 1, _CHUNK):
            yield states, start


@dataclass(frozen=True, slots=True)
class _Part:
    greedy: Tensor  # [N, 2]: confidence, whether right
    sampled: Tensor  # [N, 2]
    by_draft: list[Tensor]  # per draft position: whether right, where the drafts before were


def _unrolled(
    head: HeadModule,
    states: HiddenStates,
    token_ids: Tensor,
    start: int,
    depth: int,
) -> _Part:
    end = min(start + _CHUNK + depth, len(states.last))
    device = head.project.device
    hidden = states.exit[start:end].to(device).float()
    last = states.last[start:end].to(device).float()
    is_first = states.is_first[start:end].to(device)
    target = states.target[start:end].to(device)
    log_normalizer = states.log_normalizer[start:end].to(device)
    columns = torch.cat((token_ids.to(device), token_ids.new_full((1,), -1).to(device)))
    count = end - start - depth
    alive = torch.ones(count, dtype=torch.bool, device=device)
    greedy = sampled = None
    by_draft: list[Tensor] = []
    for here, state in unrolled(head, hidden, last, depth):
        logits = head.logits(state)
        alive = alive & ~is_first[here]
        confidence, best = logits.softmax(-1).max(-1)
        is_right = columns[best] == target[here]
        if not by_draft:
            greedy = torch.stack((confidence, is_right.float()), 1)[alive]
            probs = teacher_probs(head, last[here], log_normalizer[here])
            sampled = _coupled(logits, probs, token_ids.to(device), start)[alive]
        by_draft.append(is_right[alive].float())
        alive = alive & is_right
    assert greedy is not None
    assert sampled is not None
    return _Part(greedy, sampled, by_draft)


def _coupled(logits: Tensor, probs: Tensor, token_ids: Tensor, seed: int) -> Tensor:
    """Compare the head's and the model's choices under the same noise at a temperature above 0.

    Returns:
        [N, 2]: the head's confidence, and whether its choice is the model's.
    """
    keys = torch.arange(len(logits), device=logits.device) + seed * 1_000_003
    ids = torch.cat((token_ids, token_ids.new_full((1,), -1)))
    noise = gumbel(keys, ids)
    drafted = logits / _SAMPLED_TEMPERATURE + DRAFT_WEIGHT * noise
    target = probs.clamp_min(1e-20).log() / _SAMPLED_TEMPERATURE + noise
    best = drafted.max(-1)
    confidence = (best.values - drafted.logsumexp(-1)).exp()
    is_right = (best.indices == target.argmax(-1)) & (best.indices < len(token_ids))
    return torch.stack((confidence, is_right.float()), 1)


def rates(outcomes: Tensor) -> list[float]:
    """Return the share of right drafts per confidence bin.

    The middle of a bin counts as one more outcome, so that a bin without any has a rate, too.

    Args:
        outcomes: [N, 2]: confidence, and whether the draft was right.
    """
    shares = []
    lower = 0.0
    for upper in BIN_EDGES:
        inside = outcomes[(outcomes[:, 0] > lower) & (outcomes[:, 0] <= upper)]
        middle = (lower + upper) / 2
        shares.append(round((float(inside[:, 1].sum()) + middle) / (len(inside) + 1), 4))
        lower = upper
    return shares


def _mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 4) if len(values) else 0.0
