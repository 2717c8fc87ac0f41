"""Where settings come from: defaults < YAML file < environment < command line.

Every source is reduced to a list of `Given` values that remember how they were written, so that an
error names the flag, key or variable to change; a source that gives one setting twice is refused.
Knows nothing of what the settings mean.
"""

import argparse
import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from server.foreign_flags import FOREIGN_FLAGS
from server.settings import ServerSettings
from server.settings_values import HeadsDirectory

_PREFIX = "ADADECODE_"
_CONFIG = "ADADECODE_CONFIG"  # --config as a variable
_OTHER_VARIABLES = {_CONFIG, "ADADECODE_CACHE"}  # the latter is read by the engine, not a flag
_EPILOG = (
    f"Every flag is also a key of --config's FILE (max-num-seqs) and a variable "
    f"({_PREFIX}MAX_NUM_SEQS), where commas separate several values. The command line wins over "
    "variables, and both over the file."
)
_TRUE, _FALSE = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}

logger = logging.getLogger(__name__)


class SettingsError(ValueError):
    """A setting that is unknown or out of range; the message names it as the user wrote it."""


class UnknownSetting(SettingsError):
    """There is no setting of this name."""


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as given by one source."""

    name: str  # the field of ServerSettings
    value: Any  # None: an empty key, which leaves the default
    origin: str  # as written: --port, ADADECODE_PORT, configs/x.yaml: port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, --config and one flag per setting."""
    parser.epilog = _EPILOG
    fields = ServerSettings.model_fields
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=argparse.SUPPRESS,
        help=f"{fields['model'].description} (default: {fields['model'].default})",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"YAML file of these settings (default: ${_CONFIG}).",
    )
    groups: dict[str, Any] = {}
    for name, field in fields.items():
        if name == "model":
            continue
        assert isinstance(field.json_schema_extra, dict), "every setting has a group"
        group = str(field.json_schema_extra["group"])
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.description}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
            if "(default:" not in options["help"]:
                options["help"] += f" (default: {'on' if field.default else 'off'})"
        else:
            if field.default not in (None, (), {}, ""):
                options["help"] += f" (default: {_shown(field.default)})"
            options["metavar"] = _metavar(name, field)
            if get_origin(field.annotation) is tuple:
                options["action"] = "append"
        groups[group].add_argument(_flag_name(name), **options)
    for flag in FOREIGN_FLAGS:
        parser.add_argument(flag, action=_Refuse, nargs="?", help=argparse.SUPPRESS)


class _Refuse(argparse.Action):
    """Ends the command with what to do instead of passing another server's flag."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Exit as for an unknown flag."""
        flag = self.option_strings[0]
        parser.exit(2, f"{parser.prog}: {_foreign(flag, flag)}\n")


def load_settings(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServerSettings:
    """Merge the sources and validate the outcome.

    Raises:
        SettingsError: for an unknown key or a bad value, or a file that cannot be read.
    """
    merged = {
        **_by_name(_from_file(*_config_of(arguments, environment))),
        **_by_name(_from_environment(environment)),
        **_by_name(_from_arguments(arguments)),  # later sources win
    }
    values = {name: item.value for name, item in merged.items() if item.value is not None}
    try:
        return ServerSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "path_type":  # pydantic's words name a class of Python's
            message = "should be a path"
        if not first["loc"]:  # settings that do not fit together: the message names them
            raise SettingsError(message) from None
        origin = merged[str(first["loc"][0])].origin
        raise SettingsError(f"{origin}: {_lower_first(message)}") from None


def _config_of(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[Path | None, str]:
    """Return the file of settings, if there is one, and what names it."""
    if arguments.config is not None:
        return arguments.config, "--config"
    named = environment.get(_CONFIG)
    return (Path(named) if named else None), _CONFIG


def _by_name(source: Iterable[Given]) -> dict[str, Given]:
    """Refuse what a source gives twice, in one spelling or two, as only one of them would count."""
    by_name: dict[str, Given] = {}
    for item in source:
        first = by_name.setdefault(item.name, item)
        if first is not item:
            other = f", also as {first.origin}" if first.origin != item.origin else ""
            raise SettingsError(f"{item.origin}: given twice{other}")
    return by_name


def _from_file(path: Path | None, origin: str) -> Iterable[Given]:
    if path is None:
        return
    try:
        content = _pairs_in(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{origin}: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise SettingsError(f"{path}: should be a mapping of settings, one `key: value` a line")
    for key, value in content:
        yield _resolve(str(key).replace("-", "_"), value, f"{path}: {key}")


def _pairs_in(text: str) -> list[tuple[Any, Any]] | None:
    """Parse a YAML mapping to its pairs, as a dict would keep the last of equal keys; else None."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            pairs: list[tuple[Any, Any]] = loader.construct_pairs(root, deep=True)
            return pairs
        is_empty = root is None or loader.construct_document(root) is None
        return [] if is_empty else None
    finally:
        loader.dispose()


def _from_environment(environment: Mapping[str, str]) -> Iterable[Given]:
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES or not value:
            continue
        # Not refused: Kubernetes sets such variables for every service named adadecode.
        if variable == f"{_PREFIX}PORT" and "://" in value:
            logger.warning("ignored: %s is the address of a service, not a port", variable)
            continue
        try:
            yield _resolve(variable.removeprefix(_PREFIX).lower(), value, variable)
        except UnknownSetting as error:
            logger.warning("ignored: %s", error)


def _from_arguments(arguments: argparse.Namespace) -> Iterable[Given]:
    for name in ServerSettings.model_fields:
        if hasattr(arguments, name):
            origin = "MODEL" if name == "model" else _flag_name(name)
            yield Given(name, getattr(arguments, name), origin)


def _resolve(key: str, value: Any, origin: str) -> Given:
    """Resolve a key; `no_x` is the opposite of a boolean `x`, as on the command line."""
    fields = ServerSettings.model_fields
    if key in fields:
        if isinstance(value, bool) and fields[key].annotation is not bool:  # 1 or 0 for a number
            raise SettingsError(f"{origin}: should not be true or false (or on, off, yes, no)")
        return Given(key, value, origin)
    positive = key.removeprefix("no_")
    if positive in fields and fields[positive].annotation is bool:
        opposite = None if value is None else not _parse_bool(value, origin)
        return Given(positive, opposite, origin)
    if _flag_name(key) in FOREIGN_FLAGS:
        raise UnknownSetting(_foreign(_flag_name(key), origin))
    nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.65)
    hint = f"; did you mean {nearest[0].replace('_', '-')}?" if nearest else ""
    raise UnknownSetting(f"{origin}: unknown setting{hint}")


def _foreign(flag: str, origin: str) -> str:
    return f"{origin}: no setting of this server: {FOREIGN_FLAGS[flag]}"


def _parse_bool(value: Any, origin: str) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise SettingsError(f"{origin}: should be true or false")
    return text in _TRUE


def _shown(default: Any) -> str:
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def _metavar(name: str, field: FieldInfo) -> str:
    """Return a flag's choices, N for a number, DIR, JSON, or the last word of its name."""
    if get_origin(field.annotation) is Literal:
        return f"{{{','.join(get_args(field.annotation))}}}"
    if field.annotation in (int, int | None) and not isinstance(field.default, str):
        return "N"
    if field.annotation in (HeadsDirectory | None, Path | None):
        return "DIR"
    if get_origin(field.annotation) is dict:
        return "JSON"
    return name.rsplit("_", 1)[-1].upper()


def _flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
