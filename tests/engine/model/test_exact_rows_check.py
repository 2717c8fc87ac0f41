"""The check of exact rows passes where bits do not depend on the call, and names where they do."""

from pathlib import Path

import pytest
import torch
from tiny_model import load_tiny, write_tiny_llama
from torch import Tensor

from engine.model.exact_rows import CHECKED_COUNTS, uneven_counts
from engine.model.ops.interface import TokenBatch
from engine.model.ops.torch_ops import TorchLinear, TorchOps

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


def test_exact_rows_pass(directory: Path) -> None:
    assert uneven_counts(load_tiny(directory, TorchOps("cpu"))) == []


def test_a_linear_that_minds_company_is_found(directory: Path) -> None:
    class SplitOps(TorchOps):
        """Rounds differently when many tokens share the call, as libraries that split sums do."""

        def linear(self, x: Tensor, weight: TorchLinear, **options: object) -> Tensor:  # type: ignore[override]
            out = super().linear(x, weight, **options)  # type: ignore[arg-type]
            return torch.nextafter(out, out + 1) if len(x) > 8 else out

    decoder = load_tiny(directory, SplitOps("cpu"))
    assert uneven_counts(decoder) == [count for count in CHECKED_COUNTS if count > 8]


def test_attention_that_minds_company_is_found(directory: Path) -> None:
    class SplitOps(TorchOps):
        def attention(self, qkv: Tensor, *args: object) -> Tensor:  # type: ignore[override]
            out = super().attention(qkv, *args)  # type: ignore[arg-type]
            batch = args[-1]
            assert isinstance(batch, TokenBatch)
            return out * (1 + 1e-6) if len(batch.positions) == 3 else out

    assert uneven_counts(load_tiny(directory, SplitOps("cpu"))) == [3]
