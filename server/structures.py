"""Turns what a body asks its outputs to look like into a `Structure`, with the field that asks.

The engine finds out whether a structure can be followed; here it is only written down.
"""

import json
from dataclasses import dataclass
from typing import Any

from engine import AsyncEngine
from engine.errors import RequestError, StructureError
from engine.request import Structure
from server.errors import missing_field
from server.protocol.common import CompletionRequestBase
from server.protocol.structures import ResponseFormat, StructuredOutputs

_MAX_CHARS = 1 << 17


@dataclass(frozen=True, slots=True)
class AskedStructure:
    """A structure and the parameter that errors about it name."""

    structure: Structure
    param: str
    parts: tuple["AskedStructure", ...] = ()  # any of them may be what cannot be followed
    unused: "AskedStructure | None" = None  # concerns no output, but has to be right all the same

    async def approve(self, engine: AsyncEngine) -> None:
        """Have the engine check that the structure can be followed.

        Raises:
            RequestError: it cannot; names its parameter, or that of the part to blame.
            EngineError: the engine cannot check it.
        """
        if len(self.structure.source) > _MAX_CHARS:
            message = f"{self.param}: at most {_MAX_CHARS} characters are allowed."
            raise RequestError(message, param=self.param)
        try:
            await engine.approve(self.structure)
        except StructureError as error:
            for part in self.parts:
                await part.approve(engine)
            raise RequestError(f"{self.param}: {error}.", param=self.param) from None
        if self.unused is not None:
            await self.unused.approve(engine)


def asked_structure(body: CompletionRequestBase) -> AskedStructure | None:
    """Return what the whole answer has to look like; None: anything.

    Raises:
        RequestError: the field is wrong, or two fields ask for a structure.
    """
    by_format = _of_format(body.response_format) if body.response_format is not None else None
    by_options = _of_options(body.structured_outputs) if body.structured_outputs else None
    if by_format is not None and by_options is not None:
        message = "response_format and structured_outputs cannot be used together."
        raise RequestError(message, param="structured_outputs")
    return by_format or by_options


def refuse_schema_of(kind: str, schema: object, param: str) -> None:
    """Refuse a schema beside a type of format that has none.

    Raises:
        RequestError: there is one; the answer would not follow it.
    """
    if schema is not None:
        message = f"{param} is not for type {kind}; use type json_schema."
        raise RequestError(message, param=param)


def json_text(value: Any, param: str) -> str:
    """Serialize what a client sent to JSON.

    Raises:
        RequestError: it is nested too deep, or has numbers that JSON lacks.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except RecursionError:
        raise RequestError(f"{param}: nested too deep.", param=param) from None
    except ValueError:
        raise RequestError(f"{param}: a number is out of range.", param=param) from None


def _of_format(asked: ResponseFormat) -> AskedStructure | None:
    if asked.type != "json_schema":
        refuse_schema_of(asked.type, asked.json_schema, "response_format.json_schema")
        extra = asked.model_extra or {}
        # As llama.cpp's server has it.
        refuse_schema_of(asked.type, extra.get("schema"), "response_format.schema")
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return AskedStructure(Structure(kind="json_object"), "response_format")
    param = "response_format.json_schema"
    if asked.json_schema is None:
        raise missing_field(param)
    if asked.json_schema.json_schema is None:
        return AskedStructure(Structure(kind="json_object"), param)
    source = json_text(asked.json_schema.json_schema, f"{param}.schema")
    return AskedStructure(Structure(kind="json_schema", source=source), f"{param}.schema")


def _of_options(asked: StructuredOutputs) -> AskedStructure:
    given = [
        name
        for name in ("json_schema", "regex", "choice", "grammar", "json_object")
        if getattr(asked, name) is not None
    ]
    if len(given) != 1:
        message = "structured_outputs: give one of json, regex, choice, grammar and json_object."
        raise RequestError(message, param="structured_outputs")
    name = "json" if given[0] == "json_schema" else given[0]
    param = f"structured_outputs.{name}"
    structure = _spelled(asked, param)
    if not structure.source.isascii():
        _check_encodable(structure.source, param)
    return AskedStructure(structure, param)


def _spelled(asked: StructuredOutputs, param: str) -> Structure:
    if asked.regex is not None:
        return Structure(kind="regex", source=asked.regex)
    if asked.grammar is not None:
        return Structure(kind="grammar", source=asked.grammar)
    if asked.choice is not None:
        texts = [{"type": "const_string", "value": text} for text in asked.choice]
        source = json_text({"type": "or", "elements": texts}, param)
        return Structure(kind="structural_tag", source=source)
    if isinstance(asked.json_schema, str):
        return Structure(kind="json_schema", source=asked.json_schema)
    if asked.json_schema is not None:
        return Structure(kind="json_schema", source=json_text(asked.json_schema, param))
    return Structure(kind="json_object")


def _check_encodable(source: str, param: str) -> None:
    try:
        source.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{param}: holds half a surrogate pair.", param=param) from None
