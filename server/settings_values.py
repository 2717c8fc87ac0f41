"""The types of settings' values, as people write them: sizes, lists, files."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainValidator, SecretStr

from server.protocol.base import JsonObject
from server.sampling_defaults import GenerationSource, checked_overrides, checked_source
from server.template_variables import checked_variables

# What browsers send in the header Origin: a scheme and a host, or null.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)


def _parse_size(value: object) -> object:
    """Parse a size: 512M and 512MiB are 512 * 1024**2 bytes, 512MB is 512 * 1000**2."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a number of bytes such as 536870912, 512M or 2G")
    number, unit, suffix = match.groups()
    base = 1000 if suffix and suffix.lower() == "b" else 1024
    size = float(number) * base ** " KMGT".index(unit.upper() or " ")
    if size >= 2**63:
        raise ValueError("should be less than 2**63 bytes")
    return int(size)


def _split(text: str) -> tuple[str, ...]:
    """Split at commas, for where only one string can be given (environment, YAML scalar).

    Text that names nothing is refused: a key that a template left empty would open the server.
    """
    items = tuple(filter(None, map(str.strip, text.split(","))))
    if not items:
        raise ValueError("should not be empty")
    return items


def _parse_list(value: object) -> object:
    if isinstance(value, str):
        return _split(value)
    if not isinstance(value, list | tuple):
        raise ValueError("should be text, in quotes if it looks like a number, or a list of it")
    items = tuple(item.strip() if isinstance(item, str) else item for item in value)
    if "" in items:
        raise ValueError("should not be empty")
    return items


def _parse_json_lists(value: object) -> object:
    """Parse plain items, commas, and lists as vLLM's command line has them: '["a", "b"]'."""
    items: list[object] = []
    if not isinstance(value, str | list | tuple):
        raise ValueError("should be a list")
    for given in [value] if isinstance(value, str) else value:
        items += _parse_json_list(given) if isinstance(given, str) else [given]
    return tuple(items)


def _parse_json_list(text: str) -> list[object]:
    if not text.lstrip().startswith("["):
        return list(_split(text))
    try:
        items: list[object] = json.loads(text)
    except ValueError:
        raise ValueError(f"{text} is no JSON list") from None
    return items


def _as_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Check that browsers can send each, as headers are compared letter by letter."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} should be like https://example.org, without a path, or *")
    return origins


def _as_http_url(url: str) -> str:
    if not re.match(r"https?://[^/\s]", url):
        raise ValueError("should begin with http:// or https:// and a host")
    return url


def _readable(path: Path) -> Path:
    """Check that a file can be read, at start-up rather than when it is first needed."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return path


def _parse_object(example: str) -> Callable[[object], object]:
    """Return a parser of JSON objects: as text, or as a YAML mapping is read."""

    def parse(value: object) -> object:
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ValueError(f"should be a JSON object, such as '{example}'")
        return parsed

    return parse


def _as_template(value: object) -> object:
    """Take text with Jinja's braces as a template, and any other as the name of a file of one."""
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        return value
    if not isinstance(value, str | Path):
        raise ValueError("should be a file, or text with Jinja's {{ … }} or {% … %}")
    path = _readable(Path(value))
    try:
        text = template_in(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return path


def template_in(source: str | Path) -> str:
    """Return the text of a chat template."""
    return source if isinstance(source, str) else source.read_text(encoding="utf-8")


def _in_directory(path: Path) -> Path:
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path} should be a file in a directory that exists")
    return path


def _holding_heads(path: Path) -> Path:
    """Check at start-up what the worker would only find when the model is loaded."""
    if not (path / "heads.json").is_file():
        raise ValueError(f"{path} should be a directory with heads.json in it")
    return path


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("should not be empty")
    return text


def _as_root_path(path: str) -> str:
    stripped = path.rstrip("/")
    if stripped and not stripped.startswith("/"):
        raise ValueError("should begin with /")
    return stripped


def _check_keys(keys: Iterable[str]) -> None:
    """Refuse a key that cannot stand in a header, so that no client could send it."""
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError("keys should be printable ASCII characters")


def _as_keys(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    _check_keys(secret.get_secret_value() for secret in secrets)
    return secrets


def _holding_keys(path: Path) -> Path:
    keys = keys_in(_readable(path))
    if not keys:
        raise ValueError(f"{path} holds no key")
    _check_keys(keys)
    return path


def keys_in(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one per line; empty lines and # comments are skipped."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


Size = Annotated[int, BeforeValidator(_parse_size)]
NameList = Annotated[tuple[str, ...], BeforeValidator(_parse_json_lists)]
InputFile = Annotated[Path, AfterValidator(_readable)]
HeadsDirectory = Annotated[Path, AfterValidator(_holding_heads)]
OutputFile = Annotated[Path, AfterValidator(_in_directory)]
Origins = Annotated[NameList, AfterValidator(_as_origins)]
Text = Annotated[str, AfterValidator(_not_blank)]
HttpUrl = Annotated[str, AfterValidator(_as_http_url)]
Names = Annotated[tuple[str, ...], BeforeValidator(_parse_list)]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_parse_list), AfterValidator(_as_keys)]
KeyFile = Annotated[Path, AfterValidator(_holding_keys)]
RootPath = Annotated[str, AfterValidator(_as_root_path)]
GenerationConfig = Annotated[GenerationSource, PlainValidator(checked_source)]
GenerationOverrides = Annotated[
    dict[str, Any],
    AfterValidator(checked_overrides),
    BeforeValidator(_parse_object('{"temperature": 0.2}')),
]
ChatTemplate = Annotated[str | Path, PlainValidator(_as_template)]
TemplateVariables = Annotated[
    JsonObject,
    AfterValidator(checked_variables),
    BeforeValidator(_parse_object('{"enable_thinking": false}')),
]
