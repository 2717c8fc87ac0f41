"""A head's refinement while the head learns: it stays as it was shipped, and what is learned below
it sees through it. Floats beside the packed weights that serve, the gradient written out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.exit_head import RefinementWeights


@dataclass(frozen=True, slots=True)
class Refined:
    """What came of one call, kept for the way back."""

    state: Tensor  # [T, E]: the linear estimate, and what was added
    unit: Tensor  # [T, E], the linear estimate at unit RMS
    scale: Tensor  # [T, 1], that made it so
    gate: Tensor  # [T, F]
    up: Tensor  # [T, F]


class FloatRefinement:
    """See `engine.model.exit_head` for what it computes."""

    def __init__(self, weights: RefinementWeights, device: torch.device) -> None:
        def floats(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32)

        self._norm, self._down = floats(weights.norm), floats(weights.down)
        self._gate, self._up = floats(weights.gate), floats(weights.up)

    def refine(self, linear: Tensor) -> Refined:
        """Linear estimates [T, E] -> refined ones."""
        scale = inverse_rms(linear)
        unit = linear * scale
        scaled = unit * self._norm
        gate, up = scaled @ self._gate.T, scaled @ self._up.T
        return Refined(linear + (F.silu(gate) * up) @ self._down.T, unit, scale, gate, up)

    def pull(self, refined: Refined, errors: Tensor) -> Tensor:
        """Errors of refined estimates [T, E] -> of the linear ones."""
        inner = errors @ self._down
        share = refined.gate.sigmoid()
        gated = refined.gate * share
        of_gate = inner * refined.up * (share + gated * (1.0 - share))
        of_unit = (of_gate @ self._gate + (inner * gated) @ self._up) * self._norm
        return errors + pull_unit(of_unit, refined.unit, refined.scale)


def inverse_rms(x: Tensor) -> Tensor:
    """What scales x [..., E] to root-mean-square 1: [..., 1]."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def pull_unit(errors: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """Errors of what was scaled to unit RMS [T, E] -> of what it was before."""
    return (errors - unit * (errors * unit).mean(-1, keepdim=True)) * scale
