"""What a request gets where it leaves a sampling value out: the model's own or OpenAI's.

Reads generation_config.json as vLLM does: these keys and no others, null as if it were not there.
`do_sample` is not among them: a file that says false is not greedy, unless its temperature is 0.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from engine.checkpoint.directory import read_json
from engine.errors import ModelLoadError
from server.protocol.sampling import MinP, NumTokens, RepetitionPenalty, Temperature, TopK, TopP

GenerationSource = Literal["auto", "none"] | Path  # the model's own file, no file, that file

_FILE = "generation_config.json"
_WAYS_OUT = (
    "--override-generation-config can replace the value, --generation-config none serves with "
    "OpenAI's defaults"
)


class SamplingDefaults(BaseModel):
    """The defaults of one served model; those of the class are OpenAI's."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    max_new_tokens: NumTokens | None = None  # bounds the default of max_tokens, but no request's

    @field_validator("top_k")
    @classmethod
    def _off_is_zero(cls, top_k: int) -> int:
        return max(0, top_k)

    def changed(self) -> dict[str, float]:
        """Return the values that are not OpenAI's."""
        return self.model_dump(exclude_defaults=True)


_KEYS = tuple(SamplingDefaults.model_fields)


def sampling_defaults(
    source: GenerationSource, directory: Path, overrides: Mapping[str, Any]
) -> SamplingDefaults:
    """Return the defaults of the model in `directory`.

    Args:
        source: where they are read.
        directory: the model's.
        overrides: values that win over those read; None: OpenAI's.

    Raises:
        ModelLoadError: the file cannot be read, or a value is out of range.
    """
    if source == "none":
        return _parsed(overrides)
    file = _file_in(directory) if source == "auto" else source
    try:
        return _parsed({**_known(read_json(file)), **overrides})
    except ValueError as error:
        raise ModelLoadError(f"{file}: {error}. {_WAYS_OUT}.") from None


def checked_source(value: object) -> GenerationSource:
    """Parse `--generation-config`, and read the file if it names one.

    Raises:
        ValueError: it names none that can be read, or the file holds a value out of range.
    """
    if value == "auto":
        return "auto"
    if value in ("none", "vllm"):  # vllm: vLLM's word for it
        return "none"
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("should be auto, none, or a directory or file with a generation config")
    try:
        file = _file_in(Path(value)) if Path(value).is_dir() else Path(value)
        if not file.is_file():
            raise ValueError(f"there is no {file}; besides files, auto and none are known")
        values = read_json(file)
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}") from None
    except ModelLoadError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    try:
        _parsed(_known(values))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return file


def checked_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    """Check those of `--override-generation-config`.

    Raises:
        ValueError: a key is not known, or a value is out of range.
    """
    for key in overrides:
        if key not in _KEYS:
            nearest = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(_KEYS)}"
            raise ValueError(f"{key}: unknown key; {hint}")
    _parsed(overrides)
    return overrides


def _file_in(directory: Path) -> Path:
    return directory / _FILE


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a file has for our keys."""
    return {key: values[key] for key in _KEYS if key in values}


def _parsed(values: Mapping[str, Any]) -> SamplingDefaults:
    """Check values of known keys; None stands for OpenAI's default.

    Raises:
        ValueError: naming the key.
    """
    try:
        return SamplingDefaults.model_validate(
            {key: value for key, value in values.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        message = first["msg"]
        raise ValueError(f"{first['loc'][0]}: {message[:1].lower()}{message[1:]}") from None
