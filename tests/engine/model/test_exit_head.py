"""A head that adopts other weights equals one that was built with them, in every backend."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from backends import form_name, ops_of_every_form
from tiny_model import (
    HIDDEN,
    load_tiny,
    random_head_tensors,
    random_heads,
    write_tiny_heads,
    write_tiny_llama,
)

from engine.errors import HeadsMismatch
from engine.model.exit_head import (
    FORMAT_VERSION,
    HeadWeights,
    build_heads,
    format_version,
    load_heads,
    read_facts,
)
from engine.model.ops.interface import Ops
from engine.worker.learning.unit_rms import unit_rms
from training.head_module import HeadModule

pytestmark = pytest.mark.torch

REFINEMENT = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("size", [0, REFINEMENT], ids=["linear", "refined"])
@pytest.mark.parametrize("ops", ops_of_every_form(), ids=form_name)
@torch.inference_mode()
def test_adopted_weights_are_as_good_as_built_ones(directory: Path, ops: Ops, size: int) -> None:
    decoder = load_tiny(directory, ops)
    heads = random_heads(decoder, [2], 40, size)
    assert heads.refinement_sizes == [size], "costs are kept by it"
    weights = HeadWeights(
        project=torch.randn(HIDDEN, HIDDEN),
        project_previous=torch.randn(HIDDEN, HIDDEN),
        other=torch.randn(HIDDEN),
    )
    tensors = random_head_tensors([2], 40, size) | weights.named(2)
    (built,) = build_heads(decoder, heads.token_ids, tensors, [2], heads.calibration).heads
    inputs = (*torch.randn(2, 3, HIDDEN), [1, 1, 1])
    (head,) = heads.heads
    before = head(*inputs)

    head.adopt(weights)

    for mine, other in zip(head(*inputs), built(*inputs), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(head(*inputs)[0], before[0])
    assert all(
        torch.equal(mine, tensors[name])
        for name, mine in HeadWeights.of(tensors, 2).named(2).items()
    )


@pytest.mark.parametrize("ops", ops_of_every_form(), ids=form_name)
@torch.inference_mode()
def test_every_backend_refines_as_training_does(directory: Path, ops: Ops) -> None:
    decoder = load_tiny(directory, ops)
    tensors = random_head_tensors([2], 40, REFINEMENT)
    (head,) = random_heads(decoder, [2], 40, REFINEMENT).heads
    (linear,) = random_heads(decoder, [2], 40).heads
    module = HeadModule.from_tensors(tensors, 2, torch.zeros(40, HIDDEN))
    hidden, previous = torch.randn(2, 3, HIDDEN)

    state, _, _ = head(hidden, previous, [1, 1, 1])

    expected = module.state(unit_rms(hidden), unit_rms(previous))
    assert F.cosine_similarity(state, expected).min() > 0.98
    assert not torch.allclose(state, linear(hidden, previous, [1, 1, 1])[0], atol=0.1)


def test_only_refined_heads_need_the_newer_format() -> None:
    """Servers that know no refinements can still read linear heads, and refuse the others."""
    assert format_version(random_head_tensors([2], 40)) == 1
    assert format_version(random_head_tensors([2], 40, REFINEMENT)) == FORMAT_VERSION == 2


def test_facts_that_are_none_are_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text("[]")
    (tmp_path / "heads.safetensors").write_bytes(b"")
    decoder = load_tiny(directory, ops_of_every_form()[0])
    with pytest.raises(HeadsMismatch, match=r"heads\.json is not a JSON object"):
        read_facts(tmp_path, decoder)


@pytest.mark.parametrize("name", ["heads.json", "heads.safetensors"])
def test_damaged_files_are_named(directory: Path, tmp_path: Path, name: str) -> None:
    heads = write_tiny_heads(directory, tmp_path / "heads", [2])
    content = (heads / name).read_bytes()
    (heads / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(HeadsMismatch, match=f"{name} cannot be read"):
        load_heads(heads, load_tiny(directory, ops_of_every_form()[0]))


def test_what_heads_lack_is_named(directory: Path, tmp_path: Path) -> None:
    heads = write_tiny_heads(directory, tmp_path / "heads", [2])
    facts = json.loads((heads / "heads.json").read_text()) | {"exit_layers": [2, 3]}
    (heads / "heads.json").write_text(json.dumps(facts))
    with pytest.raises(HeadsMismatch, match=r"heads lacks 'exits\.3"):
        load_heads(heads, load_tiny(directory, ops_of_every_form()[0]))
