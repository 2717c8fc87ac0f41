"""An exit head as a trainable torch module: the function that `engine.model.exit_head` serves."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.exit_head import RefinementWeights
from engine.worker.learning.unit_rms import unit_rms

_SCALE_SAMPLE = 65536  # positions that feature scales are measured on


class RefinementModule(nn.Module):
    """A gated MLP that corrects a head's linear estimate; untrained, it adds nothing."""

    def __init__(self, scale: Tensor, size: int) -> None:
        """
        Args:
            scale: [E], multiplies the estimate at unit RMS.
            size: Size F of the inner layer.
        """
        super().__init__()
        self.norm: Tensor
        width = scale.shape[0]
        self.register_buffer("norm", scale)
        self.gate = nn.Parameter(torch.randn(size, width) * width**-0.5)
        self.up = nn.Parameter(torch.randn(size, width) * width**-0.5)
        self.down = nn.Parameter(torch.zeros(width, size))

    def forward(self, estimate: Tensor) -> Tensor:
        """Return what is to be added to linear estimates [T, E]."""
        scaled = unit_rms(estimate) * self.norm
        gated = F.silu(F.linear(scaled, self.gate)) * F.linear(scaled, self.up)
        return F.linear(gated, self.down)


class HeadModule(nn.Module):
    """The trained parts of a head: T for the hidden state at the exit, U for the previous token's
    last hidden state, their input scales, the row for tokens outside the reduced vocabulary, and
    optionally a refinement.

    Inputs are scaled to unit RMS, then by a fixed per-feature scale: hidden states have a few
    features hundreds of times larger than the rest, which would slow training down.
    """

    def __init__(self, hidden_scale: Tensor, previous_scale: Tensor, lm_head: Tensor) -> None:
        """
        Args:
            hidden_scale: [E], multiplies the hidden state at the exit.
            previous_scale: [E], multiplies the previous token's last hidden state.
            lm_head: [V', E] frozen rows of the LM head, the model's final norm weight folded in.
        """
        super().__init__()
        self.norm: Tensor
        self.previous_norm: Tensor
        self.lm_head: Tensor
        size = hidden_scale.shape[0]
        self.register_buffer("norm", hidden_scale)
        self.register_buffer("previous_norm", previous_scale)
        self.register_buffer("lm_head", lm_head)
        self.project = nn.Parameter(torch.zeros(size, size))
        self.project_previous = nn.Parameter(torch.zeros(size, size))
        self.other = nn.Parameter(torch.zeros(size))
        self.refinement: RefinementModule | None = None

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], exit_layer: int, lm_head: Tensor
    ) -> "HeadModule":
        """Build the head at an exit layer from the tensors of `heads.safetensors`."""
        prefix = f"exits.{exit_layer}."
        device = lm_head.device
        head = cls(tensors[f"{prefix}norm"], tensors[f"{prefix}previous_norm"], lm_head)
        with torch.no_grad():
            for name in ("project", "project_previous", "other"):
                getattr(head, name).copy_(tensors[prefix + name].float())
        stored = RefinementWeights.of(tensors, exit_layer)
        if stored is not None:
            head.refine(len(stored.gate))
            assert head.refinement is not None
            named = {name: tensor.float() for name, tensor in asdict(stored).items()}
            head.refinement.load_state_dict(named)
        return head.to(device)

    def refine(self, size: int, seed: int = 0) -> None:
        """Add a refinement that changes nothing yet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            refinement = RefinementModule(self.previous_norm.cpu().clone(), size)
        self.refinement = refinement.to(self.project.device)

    @property
    def refinement_size(self) -> int:
        """The size F of the refinement's inner layer; 0 without a refinement."""
        return 0 if self.refinement is None else len(self.refinement.gate)

    def state(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Estimate the last hidden state [T, E] from unit-RMS inputs [T, E]."""
        projected = F.linear(hidden * self.norm, self.project)
        estimate = projected + F.linear(previous * self.previous_norm, self.project_previous)
        return estimate if self.refinement is None else estimate + self.refinement(estimate)

    def logits(self, state: Tensor) -> Tensor:
        """Return logits [T, V' + 1] of estimates [T, E]; the last column is "other"."""
        unit = unit_rms(state)
        return torch.cat((F.linear(unit, self.lm_head), (unit @ self.other)[:, None]), dim=1)

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return everything but the frozen rows of the LM head, which is what checkpoints hold."""
        return {name: tensor for name, tensor in self.state_dict().items() if name != "lm_head"}

    def tensors(self, exit_layer: int) -> dict[str, Tensor]:
        """Return the tensors that `heads.safetensors` holds of this head."""
        return {
            f"exits.{exit_layer}.{name}": tensor.half() if tensor.ndim == 2 else tensor.float()
            for name, tensor in self.trained_tensors().items()
        }


def feature_scale(hidden: Tensor) -> Tensor:
    """Return 1 / root mean square of every feature [E], over the first of the states [N, E]."""
    return torch.rsqrt(hidden[:_SCALE_SAMPLE].float().pow(2).mean(0) + 1e-4)
