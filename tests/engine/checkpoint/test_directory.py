"""Checkpoint directories that are refused; a canary file would show that code in them had run."""

import json
import pickle
from pathlib import Path

import pytest

from engine.checkpoint import resolve_model
from engine.checkpoint.directory import eos_token_ids
from engine.errors import ModelLoadError, UnsafeCheckpoint, UnsupportedArchitecture

_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


class _Trap:
    """An object that touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def _directory(tmp_path: Path, **files: object) -> Path:
    """Make a plausible directory; `files` replaces files, or (None) omits them; `__` is a dot."""
    content: dict[str, object] = {
        "config.json": _CONFIG,
        "model.safetensors": b"",
        "tokenizer.json": {},
        "tokenizer_config.json": {},
    } | {name.replace("__", "."): value for name, value in files.items()}
    for name, value in content.items():
        if value is not None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_plain_directory_is_used_in_place(tmp_path: Path) -> None:
    assert resolve_model(str(_directory(tmp_path))) == tmp_path


@pytest.mark.parametrize("name", ["config__json", "tokenizer_config__json"])
def test_remote_code_is_refused(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n".encode()
    trap = _CONFIG | {"auto_map": {"AutoConfig": "trap.Config", "AutoTokenizer": "trap.Tokenizer"}}
    directory = _directory(tmp_path, **{name: trap, "trap__py": code})
    with pytest.raises(UnsafeCheckpoint, match="auto_map"):
        resolve_model(str(directory))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_weights_are_refused_by_name(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    directory = _directory(tmp_path, model__safetensors=None)
    (directory / name).write_bytes(pickle.dumps(_Trap(canary)))
    with pytest.raises(UnsafeCheckpoint, match=name):
        resolve_model(str(directory))
    assert not canary.exists()


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    directory = _directory(tmp_path, optimizer__pt=pickle.dumps(_Trap(tmp_path / "canary")))
    assert resolve_model(str(directory)) == directory
    assert not (tmp_path / "canary").exists()


def test_other_architectures_are_refused_with_the_list(tmp_path: Path) -> None:
    directory = _directory(tmp_path, config__json={"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UnsupportedArchitecture, match=r"GPT2LMHeadModel.*Llama.*Qwen3ForCausalLM"):
        resolve_model(str(directory))


def test_architectures_are_a_list(tmp_path: Path) -> None:
    directory = _directory(tmp_path, config__json={"architectures": "LlamaForCausalLM"})
    with pytest.raises(ModelLoadError, match=r"config\.json: 'architectures' is not a list"):
        resolve_model(str(directory))


@pytest.mark.parametrize("name", ["config__json", "model__safetensors", "tokenizer__json"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    directory = _directory(tmp_path, **{name: None})
    with pytest.raises(ModelLoadError, match=name.rpartition("__")[2]):
        resolve_model(str(directory))


def test_malformed_json_and_quantized_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        resolve_model(str(_directory(tmp_path, config__json=b"{")))
    quantized = _CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(ModelLoadError, match="gptq"):
        resolve_model(str(_directory(tmp_path, config__json=quantized)))
    with pytest.raises(ModelLoadError, match="awq"):
        resolve_model(
            str(_directory(tmp_path, config__json=_CONFIG | {"quantization_config": "awq"}))
        )


@pytest.mark.parametrize("token", ["<end>", {"content": "<end>", "lstrip": False}])
def test_the_token_with_which_the_tokenizer_ends_texts_ends_sequences(
    tmp_path: Path, token: object
) -> None:
    added = [{"id": 8, "content": "<start>"}, {"id": 9, "content": "<end>"}]
    directory = _directory(
        tmp_path,
        config__json=_CONFIG | {"eos_token_id": 5},
        tokenizer_config__json={"eos_token": token},
        tokenizer__json={"added_tokens": added},
    )
    assert eos_token_ids(directory) == (5, 9)
    more = {"eos_token": token, "added_tokens_decoder": {"12": {"content": "<end>"}}}
    directory = _directory(
        tmp_path, config__json=_CONFIG | {"eos_token_id": 5}, tokenizer_config__json=more
    )
    assert eos_token_ids(directory) == (5, 12)


def test_older_checkpoints_name_that_token_in_a_file_of_its_own(tmp_path: Path) -> None:
    directory = _directory(
        tmp_path,
        config__json=_CONFIG | {"eos_token_id": 5},
        special_tokens_map__json={"eos_token": "<end>"},
        tokenizer__json={"added_tokens": [{"id": 9, "content": "<end>"}]},
    )
    assert eos_token_ids(directory) == (5, 9)


def test_eos_ids_come_from_both_files(tmp_path: Path) -> None:
    generation = {"eos_token_id": [7, 3]}
    directory = _directory(
        tmp_path, config__json=_CONFIG | {"eos_token_id": 5}, generation_config__json=generation
    )
    assert eos_token_ids(directory) == (7, 3, 5)
