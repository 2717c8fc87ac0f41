"""Wire types of POST /v1/embeddings."""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from server.protocol.common import ResponseModel, TruncationFields
from server.protocol.completions import TextOrTokens, as_prompts

MAX_INPUTS = 2048  # OpenAI's own limit

Inputs = Annotated[
    list[str | list[int]],
    PlainValidator(partial(as_prompts, most=MAX_INPUTS), json_schema_input_type=TextOrTokens),
]


class EmbeddingsRequest(TruncationFields):
    """The body of POST /v1/embeddings."""

    model: str = Field(max_length=512)
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    embed_dtype: Literal["float32"] | None = None  # of base64
    endianness: Literal["native", "little"] | None = None  # the same
    dimensions: int | None = Field(None, ge=1, lt=2**31)  # keep only the first ones
    pooling: Literal["mean", "last"] | None = None  # extension; default: --pooling-type
    normalize: bool | None = None  # scale to length 1, after `dimensions`; default: true
    add_special_tokens: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(None, min_length=1, max_length=128)
    user: str | None = None  # without effect


class Embedding(ResponseModel):
    """One input's embedding."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str  # base64: little-endian float32


class EmbeddingsUsage(ResponseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(ResponseModel):
    """The answer of POST /v1/embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
