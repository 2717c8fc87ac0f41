"""Converts a /v1/responses body to the chat request that asks the same: one path serves both.

Options that only this API has (storing, conversations, background) are refused by name. So are the
chat API's names of what is called something else here, with a hint. Errors about the chat request
name this API's fields.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from engine.errors import RequestError, UnsupportedOption
from server.body import request_error
from server.errors import missing_field
from server.protocol.chat import ChatCompletionRequest
from server.protocol.foreign import refuse_foreign
from server.protocol.responses import (
    FunctionChoice,
    InputItem,
    InputPart,
    ResponsesRequest,
    TextFormat,
)
from server.structures import refuse_schema_of

_NOT_STORED = "nothing is stored here; send the whole input"
_NOT_LATER = "an answer is generated while its client waits"
_OWN_CACHE = "the server's own settings govern its cache"
# Options of this API that are not offered: their neutral values, and why.
_UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), "there are no such programs here"),
    "background": ((False,), _NOT_LATER),
    "background_options": ((), _NOT_LATER),
    "context_management": (([],), "the input is read as it was sent"),
    "conversation": ((), _NOT_STORED),
    "echo": ((False,), "an answer holds what is new"),  # chats have it
    "enable_response_messages": ((False,), "a response has items, not a template's messages"),
    "image": ((), "only text is served"),
    "moderation": ((), "nothing is moderated here"),
    "previous_input_messages": ((), _NOT_STORED),
    "previous_response": ((), _NOT_STORED),
    "previous_response_id": ((), _NOT_STORED),
    "prompt": ((), _NOT_STORED),
    "prompt_cache_options": ((), _OWN_CACHE),
    "prompt_cache_retention": (("in_memory",), _OWN_CACHE),
    "service_tier": (("auto", "default"), "all requests are served alike"),
    "store": ((False,), _NOT_STORED),
    "truncation": (("disabled",), "an input is shortened by truncate_prompt_tokens only"),
}
# Chat API fields that are not part of this API -> this API's name for the same, or None.
_ELSEWHERE: Mapping[str, str | None] = {
    "functions": "tools",
    "include_reasoning": "include",
    "logprobs": "include",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "n": None,
    "prompt_logprobs": None,
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "return_token_ids": None,
    "return_tokens_as_token_ids": None,
}
_PARAMS = {
    "logprobs": "include",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
_FIELD = re.compile(r"^([a-z_]+)((?:\[\d+\]|\.\w+)*)")
_TOOL_FIELD = re.compile(r"^(tools\[\d+\]|tool_choice)\.function\b")  # not nested in this API
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text"})


def not_offered_names() -> Collection[str]:
    """Return the names of this API's options that are not offered."""
    return _UNSUPPORTED.keys()


def check_responses_options(body: ResponsesRequest) -> None:
    """Refuse other APIs' field names, and options of this API that are not offered.

    Raises:
        UnsupportedOption: naming the field.
    """
    refuse_foreign(body.model_extra or {}, _ELSEWHERE)
    for name, value in (body.model_extra or {}).items():
        if name in _ELSEWHERE:
            there = _ELSEWHERE[name]
            hint = f"; it is {there} there" if there else ""
            raise UnsupportedOption(f"{name} is not part of the Responses API{hint}.", param=name)
        neutral, reason = _UNSUPPORTED.get(name, ((value,), ""))
        if value is not None and value not in neutral:
            raise UnsupportedOption(f"{name} is not supported: {reason}.", param=name)


@contextmanager
def naming_responses_fields() -> Iterator[None]:
    """Make errors that are raised inside name this API's fields.

    Raises:
        RequestError: the one raised inside, under the name the client knows.
    """
    try:
        yield
    except RequestError as error:
        param = _renamed(error.param) if error.param else None
        message = _renamed(str(error)) if error.param else str(error)
        renamed = RequestError(message, param=param, code=error.code)
        raise renamed from error


def to_chat_request(body: ResponsesRequest) -> ChatCompletionRequest:
    """Return the chat request that asks the same.

    Raises:
        RequestError: naming, as this API does, an item or option that is not served.
    """
    extra = {
        name: value for name, value in (body.model_extra or {}).items() if name not in _UNSUPPORTED
    }
    fields = {
        **extra,
        "model": body.model,
        "messages": _messages(body),
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": True if _has_logprobs(body) else None,
        "top_logprobs": body.top_logprobs if _has_logprobs(body) else None,
        "stream": body.stream,
        "user": body.user,
        "early_exit": body.early_exit.model_dump() if body.early_exit else None,
        **_tool_fields(body),
        "response_format": _response_format(body.text.format if body.text else None),
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    try:
        return ChatCompletionRequest.model_validate(
            {name: value for name, value in fields.items() if value is not None}
        )
    except ValidationError as error:
        raise request_error(error) from None


def _renamed(text: str) -> str:
    """Rename `messages[0].content` to `input`, and `tools[0].function.name` to `tools[0].name`."""
    text = _TOOL_FIELD.sub(r"\1", text)
    match = _FIELD.match(text)
    if match is None or match[1] not in _PARAMS:
        return text
    return _PARAMS[match[1]] + text[match.end() :]


def _has_logprobs(body: ResponsesRequest) -> bool:
    return bool(body.include or body.top_logprobs)


def _tool_fields(body: ResponsesRequest) -> dict[str, Any]:
    """Convert tools and the tool choice, flat in this API, to the chat API's nested form."""
    tools = []
    for index, tool in enumerate(body.tools or []):
        if tool.type != "function":
            message = "Only function tools are supported."
            raise UnsupportedOption(message, param=f"tools[{index}].type")
        function = tool.model_dump(
            exclude={"type", "allowed_callers", "defer_loading", "is_async"}, exclude_unset=True
        )
        tools.append({"type": "function", "function": function})
    choice: str | dict[str, Any] | None
    if isinstance(body.tool_choice, FunctionChoice):
        if body.tool_choice.type != "function":
            message = "tool_choice: only functions can be chosen."
            raise UnsupportedOption(message, param="tool_choice.type")
        name = _given(body.tool_choice.name, "tool_choice", "name")
        choice = {"type": "function", "function": {"name": name}}
    else:
        choice = body.tool_choice
    return {
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }


def _response_format(asked: TextFormat | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    if asked.type != "json_schema":
        refuse_schema_of(asked.type, asked.json_schema, "text.format.schema")
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "json_object"}
    if asked.json_schema is None:
        raise missing_field("text.format.schema")
    schema = {
        "name": asked.name or "response",
        "description": asked.description,
        "schema": asked.json_schema,
        "strict": asked.strict,
    }
    given = {name: value for name, value in schema.items() if value is not None}
    return {"type": "json_schema", "json_schema": given}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    if body.instructions is not None:
        turns.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*turns, {"role": "user", "content": body.input}]
    if not body.input:
        raise RequestError("input: should not be empty.", param="input")
    conversation = _Conversation(turns)
    for index, item in enumerate(body.input):
        conversation.add(item, f"input[{index}]")
    return conversation.turns


class _Conversation:
    """Collects items as turns: what one answer thought, said and called becomes one turn again."""

    def __init__(self, turns: list[dict[str, Any]]) -> None:
        self.turns = turns
        self._thought: str | None = None  # of the assistant's turn to come

    def add(self, item: InputItem, param: str) -> None:
        """Add the next item.

        Raises:
            RequestError: naming what is missing or not supported.
        """
        match item.type or "message":
            case "message":
                role = _given(item.role, param, "role")
                self._turn(role, content=_text(item.content, f"{param}.content"))
            case "function_call":
                call = _call(item, param)
                if not self.turns or self.turns[-1]["role"] != "assistant" or self._thought:
                    self._turn("assistant", content="")
                self.turns[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                call_id = _given(item.call_id, param, "call_id")
                content = _text(item.output, f"{param}.output")
                self._turn("tool", tool_call_id=call_id, content=content)
            case "reasoning":
                if item.content is not None:
                    self._thought = _text(item.content, f"{param}.content")
            case _:
                message = f"{param}.type: this kind of item is not supported."
                raise UnsupportedOption(message, param=f"{param}.type")

    def _turn(self, role: str, **fields: Any) -> None:
        thought, self._thought = self._thought, None
        if role == "assistant" and thought:
            fields["reasoning_content"] = thought
        self.turns.append({"role": role, **fields})


def _call(item: InputItem, param: str) -> dict[str, Any]:
    function = {
        "name": _given(item.name, param, "name"),
        "arguments": _given(item.arguments, param, "arguments"),
    }
    call_id = _given(item.call_id, param, "call_id")
    return {"id": call_id, "type": "function", "function": function}


def _given(value: str | None, param: str, name: str) -> str:
    if value is None:
        raise missing_field(f"{param}.{name}")
    return value


def _text(content: str | list[InputPart] | None, param: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise missing_field(param)
    texts = []
    for place, part in enumerate(content):
        if part.type not in _TEXT_PARTS or part.text is None:
            message = "Only text content is supported."
            raise RequestError(message, param=f"{param}[{place}]", code="unsupported_content")
        texts.append(part.text)
    return "".join(texts)
