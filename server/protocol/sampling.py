"""The ranges of sampling values, the same in requests and in what stands in for them."""

from typing import Annotated

from pydantic import Field

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1)]  # -1 and 0: off
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
NumTokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
