"""An exit head as a trainable torch module, the same function as
`engine.model.exit_head.ExitHead`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.worker.learning.trainee import unit_rms


class HeadModule(nn.Module):
    """T and U with their input scales, and the row for tokens outside the reduced vocabulary.

    Inputs are scaled to unit RMS, then by a fixed per-feature scale: hidden states have a few
    features hundreds of times larger than the rest, which would slow training down.
    """

    def __init__(self, hidden_scale: Tensor, previous_scale: Tensor, lm_head: Tensor) -> None:
        """Args:
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

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], exit_layer: int, lm_head: Tensor
    ) -> "HeadModule":
        """The head stored in `heads.safetensors`."""
        prefix = f"exits.{exit_layer}."
        device = lm_head.device
        head = cls(tensors[f"{prefix}norm"], tensors[f"{prefix}previous_norm"], lm_head)
        with torch.no_grad():
            for name in ("project", "project_previous", "other"):
                getattr(head, name).copy_(tensors[prefix + name].float())
        return head.to(device)

    def state(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Estimate of the last hidden state [T, E] from unit-RMS inputs [T, E]."""
        projected = F.linear(hidden * self.norm, self.project)
        return projected + F.linear(previous * self.previous_norm, self.project_previous)

    def logits(self, state: Tensor) -> Tensor:
        """[T, E] -> [T, V' + 1], "other" last."""
        return F.linear(unit_rms(state), torch.cat((self.lm_head, self.other[None])))

    def trained_tensors(self) -> dict[str, Tensor]:
        """Everything but the frozen rows of the LM head: what a checkpoint holds."""
        return {name: tensor for name, tensor in self.state_dict().items() if name != "lm_head"}

    def tensors(self, exit_layer: int) -> dict[str, Tensor]:
        """What `heads.safetensors` holds of this head."""
        prefix = f"exits.{exit_layer}."
        return {
            f"{prefix}norm": self.norm.detach().float(),
            f"{prefix}previous_norm": self.previous_norm.detach().float(),
            f"{prefix}other": self.other.detach().float(),
            f"{prefix}project": self.project.detach().half(),
            f"{prefix}project_previous": self.project_previous.detach().half(),
        }


def feature_scale(hidden: Tensor) -> Tensor:
    """1 / root-mean-square of every feature [E] over the sample [N, E]."""
    return torch.rsqrt(hidden.float().pow(2).mean(0) + 1e-4)
