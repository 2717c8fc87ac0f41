"""Turns a chat body into its prompt's token ids and what to look for in the answers.

The chat and responses endpoints both begin here. Knows nothing of how answers are rendered.
"""

from dataclasses import dataclass, replace

from starlette.requests import Request

from server.context import ServerContext
from server.convert import check_options
from server.metrics import ChatApi
from server.parsing.output_parser import OutputFormat
from server.prompts import (
    check_template_options,
    encode_messages,
    message_text,
    template_options,
)
from server.protocol.base import RequestModel
from server.protocol.chat import ChatCompletionRequest
from server.service import ServedModel
from server.structures import AskedStructure
from server.tool_structures import chat_structure
from server.tools import output_format


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A checked chat, ready to be generated."""

    prompt: list[int]
    expected: OutputFormat  # what to look for in the answers
    structure: AskedStructure | None  # what the answers have to look like; not approved yet
    echo: str = ""  # what the answers' content begins with


async def prepare_chat(
    request: Request,
    context: ServerContext,
    model: ServedModel,
    body: ChatCompletionRequest,
    *,
    api: ChatApi = "chat_completions",
    sent: RequestModel | None = None,
) -> PreparedChat:
    """Check the body and encode its prompt.

    Where control tokens mark tool calls, the body is changed to keep special tokens in the text.

    Args:
        api: The API that the client called, for the metrics.
        sent: What the client sent, if the body was made of it.

    Raises:
        RequestError: naming the field that cannot be honoured.
        ClientDisconnect: the client left.
    """
    context.note_unknown_fields(check_options(body, sent))
    check_template_options(body)
    template = template_options(body, model.tokenizer)
    prompt = await encode_messages(
        request, model.tokenizer, body.messages, model.info.max_model_len, template
    )
    expected = output_format(body, model.tokenizer, prompt, context.settings)
    if expected.tools is not None:
        note_calls = context.metrics.call_counter(api, is_streamed=bool(body.stream))
        expected = replace(expected, note_calls=note_calls)
    if expected.marks_are_special:
        body.skip_special_tokens = False
    structure = chat_structure(body, expected, model.tokenizer)
    return PreparedChat(prompt, expected, structure, _echo(body))


def _echo(body: ChatCompletionRequest) -> str:
    """Return the last turn's text if it is to be echoed and is the assistant's, as in vLLM."""
    last = body.messages[-1]
    if not body.echo or last.role != "assistant":
        return ""
    return message_text(len(body.messages) - 1, last)
