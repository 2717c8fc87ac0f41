"""Scans one tool call's JSON as it comes, character by character."""

import json
from collections.abc import Collection, Generator
from typing import TypeAlias

_MAX_HEADER = 256  # characters of a call's name, quotes and escapes included
_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")

_Machine: TypeAlias = Generator[None, str, str]  # is sent characters; returns a text


class _Malformed(Exception):
    """The text is not a call."""


class CallScanner:
    """Scans one call: `{"name": "f", "arguments": {…}}`, its keys in any order.

    Attributes:
        name: the function, known to be among `names`, once its arguments have begun or it ended.
        is_complete: the call ended as it should.
        is_malformed: the text is not a call; `raw` holds it if `name` is still None.
    """

    def __init__(self, names: Collection[str], *, is_name_first: bool = False) -> None:
        """
        Args:
            names: The functions that may be called.
            is_name_first: The form is `f{…}`, Mistral's newer one.
        """
        self.name: str | None = None
        self.is_complete = False
        self.is_malformed = False
        self._names = names
        self._found_name: str | None = None
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._has_arguments = False
        self._machine = self._name_first() if is_name_first else self._object()
        next(self._machine)

    def push(self, text: str, begin: int = 0) -> int:
        """Scan `text[begin:]` and return the index of the first character not taken."""
        index = begin
        try:
            while index < len(text):
                self._machine.send(text[index])
                index += 1
        except StopIteration:
            index += 1
            self.is_complete = True
            if not self._has_arguments:
                self._arguments.append("{}")
            self.name = self._found_name
        except _Malformed:
            self.is_malformed = True
        if self.name is None:
            self._raw.append(text[begin:index])
        if self._has_arguments:
            self.name = self._found_name
        return index

    @property
    def raw(self) -> str:
        """All text taken, while there is no name."""
        return "".join(self._raw)

    def take_arguments(self) -> str:
        """Return the arguments' JSON text since the last call of this; empty before the name."""
        if self.name is None:
            return ""
        taken = "".join(self._arguments)
        self._arguments.clear()
        return taken

    def _object(self) -> _Machine:
        if (yield from _visible()) != "{":
            raise _Malformed
        character = yield from _visible()
        while character != "}":
            key = yield from self._short_string(character)
            if (yield from _visible()) != ":":
                raise _Malformed
            character = yield from self._member(key)
            if character == ",":
                character = yield from _visible()
            elif character != "}":
                raise _Malformed
        if self._found_name is None:
            raise _Malformed
        return ""

    def _member(self, key: str) -> _Machine:
        """Scan one value; return the visible character that follows it."""
        character = yield from _visible()
        if key == "name":
            self._set_name((yield from self._short_string(character)))
        elif key in _ARGUMENTS and not self._has_arguments:
            yield from self._arguments_value(character)
        else:
            return (yield from _skipped_value(character))
        return (yield from _visible())

    def _arguments_value(self, character: str) -> Generator[None, str, None]:
        if character == "{":
            self._has_arguments = True
            yield from _container(character, self._arguments)
        elif character == '"':  # an object that the model put into quotes
            quoted: list[str] = []
            yield from _string(character, quoted)
            self._has_arguments = True
            self._arguments.append(_decoded("".join(quoted)))
        else:
            raise _Malformed

    def _name_first(self) -> _Machine:
        """Scan `f{…}`, or the same with marks between: `f[CALL_ID]x[ARGS]{…}`."""
        header = ""
        while (character := (yield)) != "{":
            header += character
            if len(header) > _MAX_HEADER:
                raise _Malformed
        self._set_name(header.partition("[")[0].strip())
        self._has_arguments = True
        yield from _container(character, self._arguments)
        return ""

    def _short_string(self, character: str) -> _Machine:
        quoted: list[str] = []
        yield from _string(character, quoted, _MAX_HEADER)
        return _decoded("".join(quoted))

    def _set_name(self, name: str) -> None:
        if name not in self._names or self._found_name is not None:
            raise _Malformed
        self._found_name = name


def _visible() -> _Machine:
    while (character := (yield)) in _SPACE:
        pass
    return character


def _string(
    character: str, sink: list[str], max_length: int | None = None
) -> Generator[None, str, None]:
    """Scan a string into `sink`, quotes and escapes included."""
    if character != '"':
        raise _Malformed
    sink.append(character)
    is_escaped = False
    while True:
        character = yield
        sink.append(character)
        if max_length is not None and len(sink) > max_length:
            raise _Malformed
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"':
            return


def _container(character: str, sink: list[str]) -> Generator[None, str, None]:
    """Scan an object or array into `sink`, checking nothing but its brackets and strings."""
    sink.append(character)
    depth = 1
    while depth:
        character = yield
        if character == '"':
            yield from _string(character, sink)
            continue
        sink.append(character)
        depth += (character in "{[") - (character in "}]")


def _skipped_value(character: str) -> _Machine:
    """Skip the value of a key that means nothing here; return the visible character after it."""
    if character in "{[":
        yield from _container(character, [])
    elif character == '"':
        yield from _string(character, [])
    else:
        while character not in _SPACE:
            character = yield
            if character in ",}":
                return character
    return (yield from _visible())


def _decoded(quoted: str) -> str:
    try:
        text: str = json.loads(quoted, strict=False)
    except ValueError:
        raise _Malformed from None
    return text
