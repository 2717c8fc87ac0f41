"""What a chat's whole output has to look like: calls, structured content, a thought before either.

Calls are written in the model's own form. A call has to follow its function's schema where calls
are forced, and wherever a function is strict. A function that is not strict may be called with any
object where its schema cannot be enforced.
"""

import json
from collections.abc import Sequence
from typing import Any

from engine import Tokenizer
from engine.errors import RequestError
from engine.request import Structure
from server.parsing import hermes, llama3_json, mistral
from server.parsing.forms import ToolForm
from server.parsing.output_parser import OutputFormat
from server.parsing.reasoning import BEGIN, END
from server.protocol.chat import ChatCompletionRequest, ChosenTool, Function
from server.structures import AskedStructure, asked_structure, json_text
from server.tools import tools_in_use

_ARGS = "[ARGS]"  # between name and arguments, in Mistral's newer form
_SCHEMA_KEYWORDS = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")

Format = dict[str, Any]  # a node of one of xgrammar's structural tags
_ANY_TEXT: Format = {"type": "any_text"}
_SPACE: Format = {"type": "regex", "pattern": r"\s*"}


def chat_structure(
    body: ChatCompletionRequest, expected: OutputFormat, tokenizer: Tokenizer
) -> AskedStructure | None:
    """Return what every answer has to look like; None: anything.

    Raises:
        RequestError: naming the field.
    """
    content = asked_structure(body)
    functions = _callable_functions(body)
    is_forced = body.tool_choice not in (None, "none", "auto")
    is_strict = any(function.strict for _, function in functions)
    if not functions or not (is_forced or is_strict or content):
        return _behind_thought(content, expected)
    calls = _CallFormats(body, expected, tokenizer, functions)
    if is_forced:
        _require_no_options(body)
        whole = calls.alone()
    elif content is not None:
        whole = _any_of([calls.alone(), _format_of(content)])
    else:
        whole = calls.amid_text()
    parts = [content] if content and not is_forced else []
    parts += [_function_structure(*each) for each in functions if each[1].strict]
    source = json_text(_with_thought(whole, expected), "tools")
    return AskedStructure(
        Structure(kind="structural_tag", source=source),
        "tools",
        tuple(parts),
        unused=content if is_forced else None,
    )


def _require_no_options(body: ChatCompletionRequest) -> None:
    """Refuse, beside a forced call, options that are about the whole output.

    A response format is about the content, of which there is none.
    """
    if body.structured_outputs is not None:
        message = "structured_outputs: a tool_choice that forces a call excludes it."
        raise RequestError(message, param="structured_outputs")


class _CallFormats:
    """Describes calls in the form of the model's family."""

    def __init__(
        self,
        body: ChatCompletionRequest,
        expected: OutputFormat,
        tokenizer: Tokenizer,
        functions: Sequence[tuple[str, Function]],
    ) -> None:
        self._form = expected.tool_form
        self._functions = [function for _, function in functions]
        self._is_single = body.parallel_tool_calls is False or isinstance(
            body.tool_choice, ChosenTool
        )
        self._mark = tokenizer.control_token_id(mistral.BEGIN)
        self._args = tokenizer.control_token_id(_ARGS)
        template = tokenizer.card.chat_template or ""
        self._is_name_first = _ARGS in template

    def alone(self) -> Format:
        """Describe an output of nothing but calls, one at least."""
        if self._form is ToolForm.HERMES:
            begin, end = f'{hermes.BEGIN}\n{{"name": "', f"}}\n{hermes.END}"
            return self._listed(begin, "arguments", end, "\n")
        if self._form is ToolForm.LLAMA3_JSON:
            return self._listed('{"name": "', "parameters", "}", "; ")
        if self._is_name_first:
            calls = _any_of([self._name_first(function) for function in self._functions])
            return calls if self._is_single else {"type": "plus", "content": calls}
        listed = self._listed('{"name": "', "arguments", "}", ", ")
        return _sequence([_mark(mistral.BEGIN, self._mark), _text("["), listed, _text("]")])

    def amid_text(self) -> Format:
        """Describe an output with calls where the model makes any, and text elsewhere."""
        if self._form is ToolForm.HERMES:
            return {
                "type": "triggered_tags",
                "triggers": [hermes.BEGIN],
                "tags": self.alone()["tags"],
                "stop_after_first": self._is_single,
            }
        if self._form is ToolForm.LLAMA3_JSON:  # calls are looked for at the beginning only
            begin = {"type": "regex", "pattern": rf"[^{{{llama3_json.BEGIN[0]}\s]"}
            text = _sequence([begin, _ANY_TEXT])
            return {"type": "optional", "content": _any_of([self.alone(), text])}
        return _any_of([self.alone(), {**_ANY_TEXT, "excludes": [mistral.BEGIN]}])

    def _listed(self, before_name: str, arguments: str, end: str, separator: str) -> Format:
        tags = [
            {
                "type": "tag",
                "begin": f'{before_name}{function.name}", "{arguments}": ',
                "content": _arguments(function),
                "end": end,
            }
            for function in self._functions
        ]
        return {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": separator,
            "at_least_one": True,
            "stop_after_first": self._is_single,
        }

    def _name_first(self, function: Function) -> Format:
        marks = (_mark(mistral.BEGIN, self._mark), _mark(_ARGS, self._args))
        return _sequence([marks[0], _text(function.name), marks[1], _arguments(function)])


def _callable_functions(body: ChatCompletionRequest) -> list[tuple[str, Function]]:
    """Return (parameter, function) of every function that may be called."""
    chosen = body.tool_choice.function.name if isinstance(body.tool_choice, ChosenTool) else None
    return [
        (f"tools[{index}].function", tool.function)
        for index, tool in enumerate(tools_in_use(body))
        if chosen in (None, tool.function.name)
    ]


def _arguments(function: Function) -> Format:
    schema = _parameters(function)
    return {"type": "json_schema", "json_schema": schema, "is_optional": not function.strict}


def _parameters(function: Function) -> dict[str, Any]:
    """Return the schema of the arguments, which are an object in any case."""
    schema = dict(function.parameters or {})
    if not any(keyword in schema for keyword in _SCHEMA_KEYWORDS):
        schema["type"] = "object"
    return schema


def _function_structure(param: str, function: Function) -> AskedStructure:
    """Return a strict function's schema alone, to find out whether it is the one to blame."""
    param = f"{param}.parameters"
    schema = _parameters(function)
    if schema.get("type", "object") != "object":
        raise RequestError(f"{param}: should describe an object.", param=param)
    return AskedStructure(Structure(kind="json_schema", source=json_text(schema, param)), param)


def _behind_thought(
    content: AskedStructure | None, expected: OutputFormat
) -> AskedStructure | None:
    if content is None or not expected.thinks:
        return content
    source = json_text(_with_thought(_format_of(content), expected), content.param)
    return AskedStructure(Structure(kind="structural_tag", source=source), content.param)


def _with_thought(whole: Format, expected: OutputFormat) -> Format:
    """Put a thought before `whole`, if the model may think first."""
    if not expected.thinks:
        return whole
    begin = "" if expected.is_thinking else BEGIN
    thought: Format = {"type": "tag", "begin": begin, "content": _ANY_TEXT, "end": END}
    if not expected.is_thinking:
        thought = {"type": "optional", "content": thought}
    return _sequence([thought, _SPACE, whole])


def _format_of(asked: AskedStructure) -> Format:
    """Describe a structure as a part of another.

    Raises:
        RequestError: it is a schema whose text is not JSON.
    """
    structure = asked.structure
    if structure.kind == "regex":
        return {"type": "regex", "pattern": structure.source}
    if structure.kind == "grammar":
        return {"type": "grammar", "grammar": structure.source}
    try:
        parsed = json.loads(structure.source) if structure.source else {"type": "object"}
    except (ValueError, RecursionError):
        raise RequestError(f"{asked.param}: should be JSON.", param=asked.param) from None
    if structure.kind == "structural_tag":
        return dict(parsed)
    return {"type": "json_schema", "json_schema": parsed}


def _any_of(formats: list[Format]) -> Format:
    return {"type": "or", "elements": formats}


def _sequence(formats: list[Format]) -> Format:
    return {"type": "sequence", "elements": formats}


def _text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def _mark(text: str, token_id: int | None) -> Format:
    """Describe a mark, which is a control token in some families and plain text in others."""
    return _text(text) if token_id is None else {"type": "token", "token": token_id}
