"""A head that adopts other weights is the head that was built with them, in every backend."""

from pathlib import Path

import pytest
import torch
from backends import form_name, ops_of_every_form
from tiny_model import HIDDEN, load_tiny, random_heads, write_tiny_llama

from engine.errors import HeadsMismatch
from engine.model.exit_head import HeadWeights, build_heads, read_facts
from engine.model.ops.interface import Ops

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("ops", ops_of_every_form(), ids=form_name)
@torch.inference_mode()
def test_adopted_weights_are_as_good_as_built_ones(directory: Path, ops: Ops) -> None:
    decoder = load_tiny(directory, ops)
    heads = random_heads(decoder, [2], 40)
    weights = HeadWeights(
        project=torch.randn(HIDDEN, HIDDEN),
        project_previous=torch.randn(HIDDEN, HIDDEN),
        other=torch.randn(HIDDEN),
    )
    tensors = weights.named(2) | {
        "exits.2.norm": heads.heads[0].norm,
        "exits.2.previous_norm": heads.heads[0].previous_norm,
    }
    (built,) = build_heads(decoder, heads.token_ids, tensors, [2], heads.calibration).heads
    hidden, previous = torch.randn(2, 3, HIDDEN)
    (head,) = heads.heads
    before = head(hidden, previous)

    head.adopt(weights)

    for mine, other in zip(head(hidden, previous), built(hidden, previous), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(head(hidden, previous)[0], before[0])
    assert all(
        torch.equal(mine, tensors[name])
        for name, mine in HeadWeights.of(tensors, 2).named(2).items()
    )


def test_facts_that_are_none_are_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text("[]")
    (tmp_path / "heads.safetensors").write_bytes(b"")
    decoder = load_tiny(directory, ops_of_every_form()[0])
    with pytest.raises(HeadsMismatch, match=r"heads\.json says nothing"):
        read_facts(tmp_path, decoder)
