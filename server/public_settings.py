"""Settings that may be shown: no keys, no directories of this machine, no passwords in URLs."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

_HIDDEN = "**********"
_URL_PATHS = frozenset({"root_path"})  # they begin with a slash, but lead to no file


def public_settings(settings: BaseModel) -> dict[str, Any]:
    """Return every setting by its name, in JSON's types."""
    return {
        name: value if name in _URL_PATHS else _shown(value)
        for name in type(settings).model_fields
        for value in (getattr(settings, name),)
    }


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, str):
        return _shown_text(value)
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_shown(item) for item in value]
    return value


def _shown_text(text: str) -> str:
    if "://" in text:
        url = urlsplit(text)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text
