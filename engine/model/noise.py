"""Counter-based Gumbel noise: a pure function of (seed, position, token id), the same for draft and
target.

That purity is what makes early exits lossless at every temperature: whoever predicts the token at a
position adds the same noise, and a draft is accepted iff it equals the target's choice (Daliri,
Musco, Suresh 2024, arXiv 2408.07978). Mixing function: the finalizer of splitmix64 (Steele, Lea,
Flood 2014).
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

# The weight of the noise in a draft's score. A head is less sure than the model, so at full weight
# the noise would decide more often than it does in the model. Agreement is nearly flat around this
# value.
DRAFT_WEIGHT = 0.75
MEAN_GUMBEL = 0.5772  # the mean of standard Gumbel noise

# The numbers of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB

_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * MULTIPLIER_1) & _MASK
    z = ((z ^ (z >> 27)) * MULTIPLIER_2) & _MASK
    return z ^ (z >> 31)


def signed(z: int) -> int:
    """Return 64 bits as the signed integer that tensors of int64 hold."""
    return z - (1 << 64) if z >> 63 else z


class NoiseKeys:
    """The noise keys of one seed by position, as signed 64-bit integers (for int64 tensors)."""

    def __init__(self, seed: int) -> None:
        self._start = _mix(seed & _MASK)

    def __call__(self, position: int) -> int:
        return signed(_mix((self._start + position * GOLDEN) & _MASK))


def _mix_tensor(z: Tensor) -> Tensor:
    # int64 shifts are arithmetic: mask off the copied sign bits to get logical ones.
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * signed(MULTIPLIER_1)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * signed(MULTIPLIER_2)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def noise_keys(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return the `NoiseKeys` [T] of seeds [T] at positions [T], all int64, on their device."""
    return _mix_tensor(_mix_tensor(seeds) + positions * signed(GOLDEN))


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Return Gumbel noise [T, V'] float32 for keys [T] int64 and token ids [V'].

    It is made from uniform numbers of 23 random bits, centred so that they are exact in float32 and
    never 0 or 1.
    """
    return salted_gumbel(keys, SaltedIds.of(token_ids).salts)


@dataclass(frozen=True, slots=True)
class SaltedIds:
    """Token ids that noise is often computed for, with their precomputed salts."""

    token_ids: Tensor  # [V'] int32
    salts: Tensor  # [V'] int64, mixed with the keys

    @classmethod
    def of(cls, token_ids: Tensor) -> "SaltedIds":
        """Compute the salts, on the ids' device."""
        return cls(token_ids, token_ids.to(torch.int64) * signed(GOLDEN))


def salted_gumbel(keys: Tensor, salts: Tensor) -> Tensor:
    """Return the `gumbel` noise of token ids given by their salts [V']."""
    z = _mix_tensor(keys[:, None] ^ salts[None, :])
    u = (((z >> 41) & ((1 << 23) - 1)).to(torch.float32) + 0.5) * (1.0 / (1 << 23))
    return -torch.log(-torch.log(u))


def gumbel_of(key: int, token_id: int) -> float:
    """Return the noise of one token without tensors; equals `gumbel` up to float32 rounding."""
    z = _mix((key ^ (token_id * GOLDEN)) & _MASK)
    return -log(-log(((z >> 41) + 0.5) / (1 << 23)))
