"""Wire types of /tokenize, /detokenize and /tokenizer_info, as in vLLM."""

from typing import Annotated

from pydantic import Field

from server.protocol.base import RequestModel
from server.protocol.chat import ChatMessage, TemplateFields
from server.protocol.common import ResponseModel, TruncationFields, is_none


class TokenizeRequest(TruncationFields, TemplateFields):
    """The body of POST /tokenize: a prompt or messages.

    What shapes the prompt of a completion or chat does so here; the chat template's fields need
    `messages`.
    """

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=4096)
    add_special_tokens: bool | None = None  # with a prompt; the default is true
    return_token_strs: bool | None = None


class Tokenization(ResponseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None  # as the vocabulary spells them


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: str | None = Field(None, max_length=512)
    tokens: Annotated[list[int], Field(fail_fast=True)]


class Detokenization(ResponseModel):
    """The answer of POST /detokenize: the text, special tokens spelled out."""

    prompt: str


class TokenizerCard(ResponseModel):
    """The answer of GET /tokenizer_info."""

    tokenizer_class: str
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: Annotated[str | None, Field(exclude_if=is_none)]
