"""From a body's text or messages to token ids; long texts on a thread, to keep the loop free."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from engine import Tokenizer
from engine.errors import PromptTooLong, RequestError, UnsupportedOption
from server.protocol.chat import ChatMessage, MessageToolCall, Tool
from server.tools import told_of_tools

_INLINE_CHARS = 8192  # about a millisecond of encoding
_MAX_CHARS_PER_TOKEN = 256  # no vocabulary has a longer token: beyond it a text cannot fit

Encoded = TypeVar("Encoded")


async def encode_prompts(
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    max_model_len: int,
    *,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Token ids of /v1/completions prompts; those given as ids pass.

    Raises:
        RequestError: a text is empty once encoded, or so long that it need not be encoded to know.
    """

    def encode() -> list[list[int]]:
        return [
            tokenizer.encode(each, add_special_tokens=add_special_tokens)
            if isinstance(each, str)
            else each
            for each in prompts
        ]

    texts = [each for each in prompts if isinstance(each, str)]
    encoded = await _encode(encode, [len(text) for text in texts], max_model_len, "prompt")
    if not all(encoded):
        raise RequestError("prompt: encodes to no tokens.", param="prompt")
    return encoded


async def encode_text(
    tokenizer: Tokenizer, text: str, max_model_len: int, *, add_special_tokens: bool
) -> list[int]:
    """Token ids of one text, which may be empty.

    Raises:
        RequestError: it is so long that the model could never take it, or no valid Unicode.
    """
    encode = partial(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    return await _encode(encode, [len(text)], max_model_len, "prompt")


async def decode_tokens(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens spelled out."""
    decode = partial(tokenizer.decode, token_ids, skip_special_tokens=False)
    return decode() if len(token_ids) <= _INLINE_CHARS else await asyncio.to_thread(decode)


async def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    max_model_len: int,
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Token ids of a conversation in the model's chat template.

    Raises:
        RequestError: content that is not text, or a conversation that the template refuses.
    """
    turns = [_turn(index, message) for index, message in enumerate(messages)]
    schemas = [tool.model_dump(exclude_unset=True) for tool in tools]
    extra: dict[str, Any] = {}
    if schemas or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        if "tools" in (tokenizer.card.chat_template or ""):
            extra = {"tools": schemas} if schemas else {}
        else:
            turns = told_of_tools(turns, schemas)
    num_chars = sum(len(turn["content"]) for turn in turns) + len(str(extra))
    encode = partial(
        tokenizer.apply_chat_template,
        turns,
        add_generation_prompt=add_generation_prompt,
        **extra,
    )
    return await _encode(encode, [num_chars], max_model_len, "messages")


async def _encode(
    encode: Callable[[], Encoded], nums_chars: Sequence[int], max_model_len: int, param: str
) -> Encoded:
    """Run `encode` on texts of these lengths, on a thread if they are long together."""
    if max(nums_chars, default=0) > _MAX_CHARS_PER_TOKEN * max_model_len:
        message = f"This model's context is {max_model_len} tokens; the prompt is longer."
        raise PromptTooLong(message, param=param)
    return encode() if sum(nums_chars) <= _INLINE_CHARS else await asyncio.to_thread(encode)


def _turn(index: int, message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know it: content as one text, no developer role."""
    for name in ("function_call", "audio"):
        if (message.model_extra or {}).get(name):
            param = f"messages[{index}].{name}"
            raise UnsupportedOption(f"{param} is not supported by this server.", param=param)
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(index, message),
    }
    if message.name is not None:
        turn["name"] = message.name
    if message.role == "tool" and message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"messages[{index}].tool_calls[{place}]")
            for place, call in enumerate(message.tool_calls)
        ]
    return turn


def _call(call: MessageToolCall, param: str) -> dict[str, Any]:
    """Templates take arguments as an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        message = f"{param}.function.arguments: should be a JSON object."
        raise RequestError(message, param=f"{param}.function.arguments")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text(index: int, message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if not message.tool_calls:
            param = f"messages[{index}].content"
            raise RequestError(f"{param}: field required.", param=param)
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
