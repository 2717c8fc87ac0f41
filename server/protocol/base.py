"""The base of what clients send."""

from pydantic import BaseModel, ConfigDict


class RequestModel(BaseModel):
    """Strict types, finite numbers, unknown fields kept aside."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
