"""The refinement of a head in training: fixed, but gradients pass through it.

It computes with float weights, beside the packed ones that serve. Its backward pass is written out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.exit_head import RefinementWeights
from engine.worker.learning.unit_rms import inverse_rms, unit_rms_backward


@dataclass(frozen=True, slots=True)
class Refined:
    """The result of one forward call, with what the backward pass needs."""

    state: Tensor  # [T, E], the linear estimate plus the correction
    unit: Tensor  # [T, E], the linear estimate at unit RMS
    scale: Tensor  # [T, 1], the factors that scaled it to unit RMS
    gate: Tensor  # [T, F]
    up: Tensor  # [T, F]


class FloatRefinement:
    """A head's refinement in float32; see `engine.model.exit_head` for what it computes."""

    def __init__(self, weights: RefinementWeights, device: torch.device) -> None:
        def floats(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32)

        self._norm, self._down = floats(weights.norm), floats(weights.down)
        self._gate, self._up = floats(weights.gate), floats(weights.up)

    def refine(self, linear: Tensor) -> Refined:
        """Refine linear estimates [T, E]."""
        scale = inverse_rms(linear)
        unit = linear * scale
        scaled = unit * self._norm
        gate, up = scaled @ self._gate.T, scaled @ self._up.T
        return Refined(linear + (F.silu(gate) * up) @ self._down.T, unit, scale, gate, up)

    def backward(self, refined: Refined, errors: Tensor) -> Tensor:
        """Turn the gradient of the refined estimates [T, E] into that of the linear ones."""
        inner = errors @ self._down
        share = refined.gate.sigmoid()
        gated = refined.gate * share
        of_gate = inner * refined.up * (share + gated * (1.0 - share))
        of_unit = (of_gate @ self._gate + (inner * gated) @ self._up) * self._norm
        return errors + unit_rms_backward(of_unit, refined.unit, refined.scale)
