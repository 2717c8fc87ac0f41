"""Tables of the rotary position embedding."""

import math

import torch
from torch import Tensor

from engine.model.spec import ModelSpec, RopeScaling


def rope_tables(spec: ModelSpec, max_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, D/2] float32 of position times inverse frequency, scaling applied."""
    half = torch.arange(0, spec.head_size, 2, dtype=torch.int64).float() / spec.head_size
    inverse = _scaled(1.0 / (spec.rope.theta**half), spec.rope)
    angles = torch.arange(max_positions).float()[:, None] * inverse[None, :]
    return angles.cos(), angles.sin()


def _scaled(inverse: Tensor, rope: RopeScaling) -> Tensor:
    """Inverse frequencies [D/2] stretched to longer contexts."""
    if rope.rope_type == "linear":
        return inverse / rope.factor
    if rope.rope_type == "factors":
        return inverse / torch.tensor(rope.factors)
    if rope.rope_type == "llama3":
        return _llama3(inverse, rope)
    return inverse


def _llama3(inverse: Tensor, rope: RopeScaling) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    context = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / inverse
    blend = (context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * inverse / rope.factor + blend * inverse
    stretched = torch.where(
        wavelength > context / rope.low_freq_factor, inverse / rope.factor, inverse
    )
    is_between = (wavelength >= context / rope.high_freq_factor) & (
        wavelength <= context / rope.low_freq_factor
    )
    return torch.where(is_between, blended, stretched)
