"""Noise is a pure function of its arguments, well distributed, and makes exact samples."""

import math

import pytest
import torch

from engine.model.noise import NoiseKeys, gumbel

pytestmark = pytest.mark.torch


def test_depends_on_all_arguments_and_nothing_else() -> None:
    ids = torch.arange(50)
    keys = torch.tensor([NoiseKeys(s)(p) for s, p in [(1, 2), (1, 3), (2, 2), (1, 2)]])
    noise = gumbel(keys, ids)
    assert torch.equal(noise[0], noise[3])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert torch.equal(gumbel(keys[:1], ids[17:20]), noise[:1, 17:20])


def test_keys_cover_seeds_of_64_bits() -> None:
    keys = {NoiseKeys(seed)(0) for seed in (0, 1, -1, 2**63, 2**64 - 2)}
    assert len(keys) == 5
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_is_standard_gumbel() -> None:
    noise = gumbel(torch.tensor([*map(NoiseKeys(3), range(200))]), torch.arange(1000))
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_argmax_samples_the_softmax() -> None:
    """Chi-square of 40,000 positions over five tokens; 18.5 is the 0.1 % point at 4 degrees."""
    probs = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    count = 40_000
    keys = torch.tensor([*map(NoiseKeys(11), range(count))])
    chosen = (probs.log() + gumbel(keys, torch.arange(5))).argmax(-1)
    observed = torch.bincount(chosen, minlength=5).float()
    chi_square = float(((observed - count * probs) ** 2 / (count * probs)).sum())
    assert chi_square < 18.5
