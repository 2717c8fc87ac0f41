"""The definition of an exit head: `Ops.run_head` made of a backend's smaller operations.

Backends that compute heads in a way of their own are tested against it. Knows only `interface.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.ops.interface import Ops, PackedHead


def run_head(
    ops: Ops,
    hidden: Tensor,
    previous: Tensor,
    lengths: Sequence[int],
    head: PackedHead,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Ops.run_head`."""
    projected = ops.linear(hidden, head.project, norm=head.norm, eps=eps)
    if len(hidden) == len(lengths):
        states = _estimate(ops, projected, previous, head, eps)
    else:
        states = _follow(ops, projected, previous, lengths, head, eps)
    logits = ops.linear(states, head.lm_head, norm=head.final_norm, eps=eps)
    other = ops.linear(states, head.other, norm=head.unit_norm, eps=eps)
    return states, logits.float(), other.float()


def stacked(states: Sequence[Tensor]) -> Tensor:
    """Stack states [E] into [T, E]; a single state is not copied."""
    return states[0][None] if len(states) == 1 else torch.stack(list(states))


def _follow(
    ops: Ops,
    projected: Tensor,
    previous: Tensor,
    lengths: Sequence[int],
    head: PackedHead,
    eps: float,
) -> Tensor:
    """Estimate the states of runs of several tokens, one token of each run at a time."""
    runs = [run.unbind() for run in projected.split(list(lengths))]
    found = [[state] for state in previous]
    for depth in range(max(lengths)):
        going = [i for i, run in enumerate(runs) if depth < len(run)]
        arrived = stacked([runs[i][depth] for i in going])
        before = stacked([found[i][-1] for i in going])
        for i, state in zip(going, _estimate(ops, arrived, before, head, eps), strict=True):
            found[i].append(state)
    return torch.stack([state for _, *run in found for state in run])


def _estimate(
    ops: Ops, projected: Tensor, previous: Tensor, head: PackedHead, eps: float
) -> Tensor:
    """Return the head's estimates of the last hidden states [T, E].

    Args:
        projected: [T, E], the projections of the states at the exit.
        previous: [T, E], last hidden states (or estimates) of the tokens before.
    """
    norm, refinement = head.previous_norm, head.refinement
    state = ops.linear(previous, head.project_previous, norm=norm, eps=eps, residual=projected)
    if refinement is None:
        return state
    inner = ops.gate_up(state, refinement.gate_up, norm=refinement.norm, eps=eps)
    return ops.linear(inner, refinement.down, residual=state)
