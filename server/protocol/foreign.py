"""Other servers' names for what a structure, a bound or an end of the output is called here.

They are llama.cpp's, SGLang's, TGI's, Ollama's and Anthropic's. Neither OpenAI nor vLLM has them,
but to ignore one would leave out just what was asked for: the answer's structure, or its end.
"""

from collections.abc import Collection, Mapping
from typing import Any

from engine.errors import UnsupportedOption

_OURS = {
    "ebnf": "structured_outputs.grammar",
    "grammar": "structured_outputs.grammar",
    "json_schema": "response_format",
    "max_new_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "regex": "structured_outputs.regex",
    "stop_sequences": "stop",
}
_NOTHING: tuple[Any, ...] = (None, "", [])  # no structure, no end


def foreign_names() -> Collection[str]:
    """Return the names."""
    return _OURS.keys()


def refuse_foreign(fields: Mapping[str, Any], names: Mapping[str, str | None]) -> None:
    """Refuse fields under other servers' names.

    Args:
        fields: those of a body that its API does not have.
        names: what fields are called in this API, where it has names of its own.

    Raises:
        UnsupportedOption: naming the first one, and the field to use.
    """
    for name, value in fields.items():
        if name in _OURS and value not in _NOTHING:
            ours = names.get(_OURS[name]) or _OURS[name]
            message = f"{name} is not a field of this API; use {ours} instead."
            raise UnsupportedOption(message, param=name)
