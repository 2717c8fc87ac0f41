"""Encodes a body's text or messages; long texts on a thread, to keep the event loop free."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import JsonValue
from starlette.requests import Request

from engine import Tokenizer
from engine.errors import PromptTooLong, RequestError, UnsupportedOption
from server.context import context_of
from server.errors import missing_field
from server.parsing.reasoning import END
from server.protocol.chat import ChatMessage, MessageToolCall, TemplateFields, Tool
from server.template_variables import own_names
from server.tools import told_of_tools, tools_in_use

_MAX_CHARS_PER_TOKEN = 256  # no vocabulary has a longer token, so a text beyond this cannot fit
_MAX_VARIABLES_CHARS = 65536

Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """What a chat template is told besides the messages."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False  # leave the last turn open; excludes the generation prompt
    tools: Sequence[Tool] = ()
    variables: Mapping[str, JsonValue] = field(default_factory=dict)  # such as enable_thinking


_PLAIN = TemplateOptions()


def template_options(body: TemplateFields, tokenizer: Tokenizer) -> TemplateOptions:
    """Return what a checked body asks of the model's chat template.

    Raises:
        UnsupportedOption: naming what the template does not know.
    """
    continues = bool(body.continue_final_message)
    return TemplateOptions(
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
        tools=tools_in_use(body),
        variables={
            **_effort(body.reasoning_effort, tokenizer.card.chat_template or ""),
            **(body.chat_template_kwargs or {}),
        },
    )


def _effort(asked: str | None, template: str) -> Mapping[str, JsonValue]:
    """Return the variables that tell a template how much the model is to think."""
    if asked is None:
        return {}
    if "reasoning_effort" in template:
        return {"reasoning_effort": asked}
    if asked == "none":
        if "enable_thinking" in template:
            return {"enable_thinking": False}
        if END not in template:
            return {}  # the model does not think anyway
    message = "reasoning_effort: this model's chat template does not know it."
    raise UnsupportedOption(message, param="reasoning_effort")


def check_template_options(body: TemplateFields) -> None:
    """Refuse template options that exclude each other, are the server's to set, or are too long.

    Raises:
        RequestError: naming the field.
    """
    if body.continue_final_message and body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt cannot be used together."
        raise RequestError(message, param="continue_final_message")
    variables = body.chat_template_kwargs
    if not variables:
        return
    for name in own_names(variables):
        param = f"chat_template_kwargs.{name}"
        raise UnsupportedOption(f"{param} is the server's own to set.", param=param)
    if len(json.dumps(variables)) > _MAX_VARIABLES_CHARS:
        message = f"chat_template_kwargs: at most {_MAX_VARIABLES_CHARS} characters of JSON."
        raise RequestError(message, param="chat_template_kwargs")


async def encode_prompts(
    request: Request,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    max_model_len: int,
    *,
    add_special_tokens: bool = True,
    param: str = "prompt",
) -> list[list[int]]:
    """Encode prompts, which came in the field `param`; those given as token ids are kept.

    Raises:
        RequestError: a text encodes to no tokens, or is too long to fit the model's context.
        ClientDisconnect: the client left.
    """

    def encode() -> list[list[int]]:
        return [
            tokenizer.encode(each, add_special_tokens=add_special_tokens)
            if isinstance(each, str)
            else each
            for each in prompts
        ]

    texts = [each for each in prompts if isinstance(each, str)]
    encoded = await _encode(request, encode, [len(text) for text in texts], max_model_len, param)
    if not all(encoded):
        raise RequestError(f"{param}: encodes to no tokens.", param=param)
    return encoded


async def encode_text(
    request: Request,
    tokenizer: Tokenizer,
    text: str,
    max_model_len: int,
    *,
    add_special_tokens: bool,
) -> list[int]:
    """Encode one text, which may be empty.

    Raises:
        RequestError: it is too long to fit the model's context, or not valid Unicode.
        ClientDisconnect: the client left.
    """
    encode = partial(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    return await _encode(request, encode, [len(text)], max_model_len, "prompt")


async def decode_tokens(request: Request, tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Decode token ids, special tokens spelled out.

    Raises:
        ClientDisconnect: the client left.
    """
    decode = partial(tokenizer.decode, token_ids, skip_special_tokens=False)
    return await context_of(request).texts.run(request, decode, len(token_ids))


async def encode_messages(
    request: Request,
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    max_model_len: int,
    template: TemplateOptions = _PLAIN,
) -> list[int]:
    """Encode a conversation in the model's chat template.

    Raises:
        RequestError: content that is not text, or a conversation that the template refuses.
        ClientDisconnect: the client left.
    """
    turns = [_turn(index, message) for index, message in enumerate(messages)]
    schemas = [tool.model_dump(exclude_unset=True) for tool in template.tools]
    extra: dict[str, Any] = dict(template.variables)
    if schemas or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        if "tools" in (tokenizer.card.chat_template or ""):
            extra |= {"tools": schemas} if schemas else {}
        else:
            turns = told_of_tools(turns, schemas)
    texts = [turn["content"] + turn.get("reasoning_content", "") for turn in turns]
    num_chars = sum(map(len, texts)) + len(str(extra))
    if template.continue_final_message:
        extra["continue_final_message"] = True
    encode = partial(
        tokenizer.apply_chat_template,
        turns,
        add_generation_prompt=template.add_generation_prompt,
        **extra,
    )
    # What a template does with a client's variables may take long.
    is_slow = bool(template.variables)
    return await _encode(request, encode, [num_chars], max_model_len, "messages", is_slow=is_slow)


async def _encode(
    request: Request,
    encode: Callable[[], Encoded],
    nums_chars: Sequence[int],
    max_model_len: int,
    param: str,
    *,
    is_slow: bool = False,
) -> Encoded:
    """Run `encode` on texts of these lengths, unless one is too long to fit."""
    if max(nums_chars, default=0) > _MAX_CHARS_PER_TOKEN * max_model_len:
        message = f"This model's context is {max_model_len} tokens; the prompt is longer."
        raise PromptTooLong(message, param=param)
    return await context_of(request).texts.run(request, encode, sum(nums_chars), is_slow=is_slow)


def _turn(index: int, message: ChatMessage) -> dict[str, Any]:
    """Convert a message to what chat templates know: content as one text, no developer role."""
    for name in ("function_call", "audio"):
        if (message.model_extra or {}).get(name):
            param = f"messages[{index}].{name}"
            raise UnsupportedOption(f"{param} is not supported by this server.", param=param)
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message_text(index, message),
    }
    if message.name is not None:
        turn["name"] = message.name
    thought = message.reasoning_content or message.reasoning
    if message.role == "assistant" and thought:
        turn["reasoning_content"] = thought
    if message.role == "tool":
        if message.tool_call_id is None:
            raise missing_field(f"messages[{index}].tool_call_id")
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: MessageToolCall) -> dict[str, Any]:
    """Convert a call to what chat templates know: arguments as an object.

    A call that the token limit cut off has arguments that are none; they stay the text they are.
    """
    text = call.function.arguments or "{}"
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    is_object = isinstance(arguments, dict)
    function = {"name": call.function.name, "arguments": arguments if is_object else text}
    return {"id": call.id, "type": "function", "function": function}


def message_text(index: int, message: ChatMessage) -> str:
    """Return a message's content as one text.

    Raises:
        RequestError: there is none, or it is not text.
    """
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if not message.tool_calls:
            raise missing_field(f"messages[{index}].content")
        return ""
    texts = []
    for place, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise RequestError(
                "Only text content is supported.",
                param=f"messages[{index}].content[{place}]",
                code="unsupported_content",
            )
        texts.append(part.text)
    return "".join(texts)
