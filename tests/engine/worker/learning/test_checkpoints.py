"""Learned heads outlive their worker; damaged or foreign checkpoints are passed over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import load_tiny, write_tiny_heads, write_tiny_llama

from engine.errors import ModelLoadError
from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, HeadWeights, load_heads
from engine.model.ops.torch_ops import TorchOps
from engine.worker.learning.checkpoints import Checkpoints, Learned
from engine.worker.learning.online_training import OnlineTraining

pytestmark = pytest.mark.torch

LAYERS = [1, 3]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    model = write_tiny_llama(root / "model")
    return load_tiny(model, TorchOps("cpu")), write_tiny_heads(model, root / "heads", LAYERS, 32)


def learned(checkpoints: Checkpoints, version: int) -> Learned:
    """Make weights that differ from version to version."""
    weights = {
        layer: HeadWeights(
            project=each.project + version,
            project_previous=each.project_previous,
            other=each.other,
        )
        for layer, each in checkpoints.shipped.items()
    }
    return Learned(versions=dict.fromkeys(LAYERS, version), weights=weights)


def written(shipped: tuple[Decoder, Path], directory: Path, *versions: int) -> Checkpoints:
    """Return the checkpoints of a worker that wrote these versions and closed."""
    checkpoints = Checkpoints(directory, shipped[1], shipped[0])
    for version in versions:
        checkpoints.save(learned(checkpoints, version))
        checkpoints._writing.result()
    checkpoints.close()
    return checkpoints


def read(shipped: tuple[Decoder, Path], directory: Path) -> Learned | None:
    return Checkpoints(directory, shipped[1], shipped[0]).newest()


def test_the_newest_is_what_a_new_worker_gets(shipped, tmp_path: Path) -> None:
    before = written(shipped, tmp_path, 1, 2, 3)

    found = read(shipped, tmp_path)

    assert found is not None
    assert found.versions == {1: 3, 3: 3}
    assert torch.equal(found.weights[3].project, before.shipped[3].project + 3)
    assert len(list(tmp_path.iterdir())) == 2, "old ones go"


def test_a_checkpoint_is_a_directory_of_heads(shipped, tmp_path: Path) -> None:
    written(shipped, tmp_path, 1)

    heads = load_heads(tmp_path / "v000001", shipped[0])

    assert heads.exit_layers == LAYERS
    assert all(isinstance(head, ExitHead) and head.refinement for head in heads.heads)


def test_a_damaged_one_is_passed_over_for_the_one_before(shipped, tmp_path, caplog) -> None:
    written(shipped, tmp_path, 1, 2)
    file = tmp_path / "v000002" / "heads.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)

    found = read(shipped, tmp_path)

    assert found is not None
    assert found.versions[1] == 1
    assert "damaged" in caplog.text


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"format_version": 1}', "\x00"])
def test_a_file_that_says_nothing_is_passed_over(shipped, tmp_path: Path, damage: str) -> None:
    written(shipped, tmp_path, 1)
    (tmp_path / "v000001" / "heads.json").write_text(damage)

    assert read(shipped, tmp_path) is None


def test_what_other_weights_or_heads_have_learned_is_passed_over(
    shipped, tmp_path: Path, caplog
) -> None:
    written(shipped, tmp_path / "a", 1)
    decoder, directory = shipped
    retrained = tmp_path / "heads"
    retrained.mkdir()
    (retrained / "heads.json").write_text((directory / "heads.json").read_text())
    tensors = load_file(str(directory / "heads.safetensors"))
    save_file(
        tensors | {"exits.1.norm": tensors["exits.1.norm"] * 2},
        str(retrained / "heads.safetensors"),
    )
    assert Checkpoints(tmp_path / "a", retrained, decoder).newest() is None
    assert "from other heads" in caplog.text
    facts_file = tmp_path / "a" / "v000001" / "heads.json"
    facts = json.loads(facts_file.read_text())
    facts_file.write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    assert read(shipped, tmp_path / "a") is None
    assert "other weights" in caplog.text


def test_what_was_dropped_does_not_come_back(shipped, tmp_path: Path) -> None:
    checkpoints = written(shipped, tmp_path, 1)
    assert read(shipped, tmp_path) is not None
    again = Checkpoints(tmp_path, shipped[1], shipped[0])

    again.save(learned(checkpoints, 0))
    again.close()

    assert read(shipped, tmp_path) is None


def test_a_full_disk_only_loses_the_checkpoint(shipped, tmp_path: Path, caplog) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    written(shipped, blocked, 1)

    assert "cannot be kept" in caplog.text


def test_a_place_that_cannot_be_written_is_refused_by_name(shipped, tmp_path: Path) -> None:
    decoder, directory = shipped
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ModelLoadError, match="--learn-heads-dir"):
        OnlineTraining(load_heads(directory, decoder), decoder, directory, blocked, 0.1)
