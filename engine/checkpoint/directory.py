"""A checkpoint directory in the Hugging Face layout: what we read from its JSON, what we refuse.

Nothing here executes anything from the directory.
"""

import json
from pathlib import Path
from typing import Any

from engine.errors import ModelLoadError, UnsafeCheckpoint, UnsupportedArchitecture

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

BLOCKS_FILE = "blocks.safetensors"  # beside model.safetensors: the same matrices, quantized

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is absent.

    Raises:
        ModelLoadError: The file cannot be read or is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object.")
    return content


def has_blocks(directory: Path) -> bool:
    """Whether a checkpoint also has its matrices in quantized blocks."""
    return (directory / BLOCKS_FILE).is_file()


def eos_token_ids(directory: Path) -> tuple[int, ...]:
    """Return every end-of-sequence id the checkpoint names, generation_config.json's first.

    The tokenizer's comes last. With models tuned for chats it is often the one that ends turns,
    while the other files still have the one that ended texts before.
    """
    ids: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(directory / name).get("eos_token_id")
        ids += value if isinstance(value, list) else [value]
    ids.append(_tokenizers_eos_id(directory))
    return tuple(dict.fromkeys(token_id for token_id in ids if isinstance(token_id, int)))


def _tokenizers_eos_id(directory: Path) -> int | None:
    config = read_json(directory / "tokenizer_config.json")
    # Older checkpoints say it in a file of its own.
    others = read_json(directory / "special_tokens_map.json")
    token = config.get("eos_token", others.get("eos_token"))
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    for token_id, each in config.get("added_tokens_decoder", {}).items():
        if each["content"] == text:
            return int(token_id)
    added = read_json(directory / "tokenizer.json").get("added_tokens", ())
    return next((each["id"] for each in added if each["content"] == text), None)


def architecture_of(config: dict[str, Any], source: Path) -> str:
    """Return the architecture named in a config.json.

    Raises:
        ModelLoadError: It is not given as a list.
        UnsupportedArchitecture: It is not one that we serve.
    """
    architectures = config.get("architectures") or ["no architecture at all"]
    if not isinstance(architectures, list):
        raise ModelLoadError(f"{source}: 'architectures' is not a list.")
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"{source} names {architectures[0]}; supported: {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    return str(architectures[0])


def check_directory(directory: Path) -> None:
    """Refuse a directory that we cannot serve or that would have to run code to load.

    Raises:
        UnsafeCheckpoint: It has remote code (`auto_map`), or weights as pickle files only.
        UnsupportedArchitecture: It is of another model family.
        ModelLoadError: A file is missing, or it is quantized (GPTQ, AWQ, ...).
    """
    _refuse_remote_code(directory)
    config = read_json(directory / "config.json")
    if not config:
        raise ModelLoadError(f"{directory} has no config.json: it is not a Hugging Face directory.")
    architecture_of(config, directory / "config.json")
    _require_safetensors(directory)
    if not (directory / "tokenizer.json").is_file():
        raise ModelLoadError(f"{directory} has no tokenizer.json.")
    quantization = config.get("quantization_config")
    if quantization:
        is_object = isinstance(quantization, dict)
        method = quantization.get("quant_method", "unknown") if is_object else quantization
        raise ModelLoadError(
            f"{directory} is quantized ({method}). Supported are plain safetensors and GGUF files."
        )


def _refuse_remote_code(directory: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if "auto_map" in read_json(directory / name):
            raise UnsafeCheckpoint(
                f"{directory / name} has `auto_map`: it wants its own Python code to be run, which "
                "this server never does."
            )


def _require_safetensors(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise UnsafeCheckpoint(
            f"{directory} has pickle weights only ({', '.join(pickles)}), which can run code "
            "when loaded. Convert them to safetensors."
        )
    raise ModelLoadError(f"{directory} has no *.safetensors files.")
