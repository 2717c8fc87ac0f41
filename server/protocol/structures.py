"""Wire types that say what an output has to look like: OpenAI's `response_format`, vLLM's
`structured_outputs`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from server.protocol.base import RequestModel

_MAX_CHOICES = 1024


def _schema(value: object) -> object:
    """Check that a value can be a JSON schema, which may also be a boolean."""
    if not isinstance(value, (dict, bool)):
        raise ValueError("should be a JSON schema: an object")
    return value


JsonSchema = Annotated[Any, BeforeValidator(_schema, json_schema_input_type=dict[str, Any] | bool)]


class NamedSchema(RequestModel):
    """A JSON schema; it is enforced whatever `strict` says."""

    name: str = Field(max_length=256)
    description: str | None = None
    json_schema: JsonSchema | None = Field(None, alias="schema")  # default: any object
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """Plain text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(RequestModel):
    """What the whole output has to match: exactly one of these."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    json_schema: JsonSchema | str | None = Field(None, alias="json")  # an object, or its JSON text
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=_MAX_CHOICES)
    grammar: str | None = None  # EBNF with a rule `root`, or Lark with a rule `start`
    json_object: Literal[True] | None = None
    disable_fallback: bool | None = None  # no effect: there is one backend
