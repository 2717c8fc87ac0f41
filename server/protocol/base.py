"""The base of all request types."""

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """Base of what clients send: strict types, finite numbers, unknown fields in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
