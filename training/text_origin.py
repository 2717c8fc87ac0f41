"""What the text in a work directory was made by, so that no other model's text is taken for it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.model.decoder import Decoder
from training.json_file import read_json, write_json
from training.prompts import Prompt

_MODEL_FILES = (  # what, beside the weights, decides how the model is asked and answers
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_DIFFERENCES = {  # by field of `TextOrigin`
    "fingerprint": "other weights",
    "numbers": "weights of another data type",
    "model_files": "another tokenizer or configuration of the model",
    "prompts": "other prompts",
    "max_new_tokens": "another --max-new-tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOrigin:
    """All that generated text and its hidden states depend on, but for their amount."""

    fingerprint: str  # of the weights
    numbers: str  # the data type of activations and weights
    model_files: str  # a digest
    prompts: str  # a digest
    max_new_tokens: int

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        numbers: str,
        directory: Path,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
    ) -> "TextOrigin":
        """Describe the text that a model in a directory gives as answers to some prompts."""
        return cls(
            fingerprint=decoder.fingerprint,
            numbers=numbers,
            model_files=_digest_of_files(directory),
            prompts=_digest(json.dumps([asdict(prompt) for prompt in prompts]).encode()),
            max_new_tokens=max_new_tokens,
        )

    @property
    def key(self) -> str:
        """A short name for a directory."""
        return _digest(json.dumps(asdict(self)).encode())[:12]

    def claim(self, work: Path) -> None:
        """Take a work directory for this text: it says so from now on.

        Raises:
            ValueError: if it holds text of another origin, or of one that it does not tell.
        """
        path = work / "made-by.json"
        known = read_json(path)
        if known is None and not (work / "generations.jsonl").exists():
            work.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(self))
            return
        known = known if isinstance(known, dict) else {}
        differences = [
            text
            for name, text in _DIFFERENCES.items()
            if name in known and known[name] != getattr(self, name)
        ]
        if differences or known.keys() != _DIFFERENCES.keys():
            what = "text of " + " and ".join(differences or ["an origin that it does not tell"])
            raise ValueError(f"--work: {work} holds {what}: empty it or give another directory")


def _digest_of_files(directory: Path) -> str:
    paths = [directory / name for name in _MODEL_FILES]
    digests = [_digest(path.read_bytes()) if path.is_file() else "" for path in paths]
    return _digest("\n".join(digests).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
