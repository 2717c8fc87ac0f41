"""Tables of the rotary position embedding, equal element for element to transformers'."""

import math

import torch
from torch import Tensor

from engine.model.spec import ModelSpec, RopeScaling


def rope_tables(spec: ModelSpec, max_positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [max_positions, D/2] float32 of position * inverse frequency, scaled."""
    inverse = _inverse_frequencies(spec.rope, spec.head_size)
    angles = torch.arange(max_positions).float()[:, None] * inverse[None, :]
    factor = spec.rope.attention_factor
    return angles.cos() * factor, angles.sin() * factor


def _inverse_frequencies(rope: RopeScaling, head_size: int) -> Tensor:
    """Return the inverse frequencies [D/2], stretched as they were for the model."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    frequencies = rope.theta**exponents
    inverse = 1.0 / frequencies
    if rope.rope_type == "linear":
        return inverse / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(inverse, rope)
    if rope.rope_type == "longrope":
        return 1.0 / (torch.tensor(rope.frequency_factors) * frequencies)
    if rope.rope_type == "yarn":
        return _yarn(frequencies, rope, head_size)
    return inverse


def _llama3(inverse: Tensor, rope: RopeScaling) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, and blend those between."""
    context = rope.original_max_position_embeddings
    longest = context / rope.low_freq_factor
    shortest = context / rope.high_freq_factor
    wavelength = 2 * math.pi / inverse
    blend = (context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * inverse / rope.factor + blend * inverse
    stretched = torch.where(wavelength > longest, inverse / rope.factor, inverse)
    is_between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(is_between, blended, stretched)


def _yarn(frequencies: Tensor, rope: RopeScaling, head_size: int) -> Tensor:
    """Stretch dimensions that turn rarely and keep those that turn often, with a ramp between.

    Source: YaRN, Peng et al. 2023, arXiv 2309.00071.
    """

    def dimension(num_rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return head_size * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(head_size // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * frequencies) * (1 - kept) + 1.0 / frequencies * kept
