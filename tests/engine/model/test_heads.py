"""A head run in one call equals the operations it is made of, to the bit; so do runs of tokens."""

from pathlib import Path

import pytest
import torch
from backends import form_name, ops_of_every_form
from tiny_model import HIDDEN, load_tiny, random_heads, write_tiny_llama
from torch import Tensor

from engine.model.exit_head import ExitHead, Head
from engine.model.ops.heads import run_head
from engine.model.ops.interface import Ops

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=ops_of_every_form(), ids=form_name)
def ops(request: pytest.FixtureRequest) -> Ops:
    return request.param


# 40: half of gate and up is no whole number of panels
@pytest.fixture(params=[0, 32, 40], ids=["linear", "refined", "odd"])
def head(ops: Ops, directory: Path, request: pytest.FixtureRequest) -> ExitHead:
    (head,) = random_heads(load_tiny(directory, ops), [2], 40, request.param).heads
    assert isinstance(head, ExitHead)
    return head


def inputs(lengths: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, previous = (torch.randn(n, HIDDEN, generator=generator) for n in (sum(lengths), 9))
    return hidden, previous[: len(lengths)]


@pytest.mark.parametrize("lengths", [[1], [4], [1, 1, 1], [2, 1, 4, 3]], ids=str)
@torch.inference_mode()
def test_a_head_is_the_operations_it_is_made_of(
    ops: Ops, head: ExitHead, lengths: list[int]
) -> None:
    hidden, previous = inputs(lengths)
    expected = run_head(ops, hidden, previous, lengths, head, head.eps)
    for mine, other in zip(head(hidden, previous, lengths), expected, strict=True):
        assert torch.equal(mine, other)


@torch.inference_mode()
def test_each_token_of_a_run_reads_the_estimate_before_it_and_nothing_else(head: ExitHead) -> None:
    lengths = [2, 1, 4]
    hidden, previous = inputs(lengths)
    followed = [
        each
        for run, before in zip(hidden.split(lengths), previous, strict=True)
        for each in one_by_one(head, run, before)
    ]
    expected = [torch.cat(parts) for parts in zip(*followed, strict=True)]
    for mine, other in zip(head(hidden, previous, lengths), expected, strict=True):
        assert torch.equal(mine, other)


def one_by_one(head: Head, run: Tensor, before: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    results = []
    for hidden in run:
        results.append(head(hidden[None], before[None], [1]))
        before = results[-1][0][0]
    return results
