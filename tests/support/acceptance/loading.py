"""Row 38: models that would run code."""

import json
import pickle
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models

from acceptance.table_server import Serve
from engine.checkpoint import resolve_model
from engine.errors import ModelLoadError, UnsafeCheckpoint
from engine.tokenizer import load_tokenizer

_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{{ self.__init__.__globals__.__builtins__.open('%s', 'w') }}",
    "{{ lipsum.__globals__['os'].popen('touch %s').read() }}",
)


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._canary,)


def models_with_code(serve: Serve) -> None:
    """Pickles, remote code and templates that reach out are refused; nothing of them runs."""
    with serve(), tempfile.TemporaryDirectory() as name:
        place = Path(name)
        canary = place / "canary"
        for number, build in enumerate((_pickles, _remote_code, _remote_tokenizer)):
            directory = place / str(number)
            directory.mkdir()
            build(directory, canary)
            _assert_unsafe(directory)
        for number, template in enumerate(_ESCAPES):
            directory = place / f"template-{number}"
            directory.mkdir()
            _template(directory, template % canary)
            _assert_unsafe(directory)
        assert not canary.exists()


def _assert_unsafe(directory: Path) -> None:
    """Assert that a model is refused when its directory is resolved or its tokenizer is loaded."""
    try:
        load_tokenizer(resolve_model(str(directory)))
    except UnsafeCheckpoint:
        return
    except ModelLoadError as error:
        raise AssertionError("refused, but not for what it does") from error
    raise AssertionError(f"{directory} was loaded")


def _pickles(directory: Path, canary: Path) -> None:
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(canary)))


def _remote_code(directory: Path, canary: Path) -> None:
    _pickles(directory, canary)
    (directory / "model.safetensors").write_bytes(b"")
    automatic = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (directory / "config.json").write_text(json.dumps(_CONFIG | automatic))
    (directory / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")


def _remote_tokenizer(directory: Path, canary: Path) -> None:
    _remote_code(directory, canary)
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    automatic = {"auto_map": {"AutoTokenizer": ["modeling.Tokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(automatic))


def _template(directory: Path, template: str) -> None:
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    (directory / "model.safetensors").write_bytes(b"")
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
