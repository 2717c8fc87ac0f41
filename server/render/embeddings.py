"""Renders answers of /v1/embeddings: vectors cut to the dimensions asked for, and normalized."""

import base64
from collections.abc import Sequence

import numpy as np

from engine.request import RequestOutput
from server.protocol.embeddings import Embedding, Embeddings, EmbeddingsRequest, EmbeddingsUsage


def render_embeddings(body: EmbeddingsRequest, outputs: Sequence[RequestOutput]) -> Embeddings:
    """Render the answer to all inputs."""
    num_tokens = sum(output.num_prompt_tokens for output in outputs)
    return Embeddings(
        data=[
            Embedding(index=index, embedding=_vector(body, output))
            for index, output in enumerate(outputs)
        ],
        model=body.model,
        usage=EmbeddingsUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _vector(body: EmbeddingsRequest, output: RequestOutput) -> list[float] | str:
    assert output.embedding is not None, "the request asked for pooling"
    vector = np.asarray(output.embedding, dtype=np.float64)[: body.dimensions]
    if body.normalize is not False:
        length = np.linalg.norm(vector)
        vector = vector / length if length > 0 else vector
    numbers = vector.astype("<f4")
    if body.encoding_format == "base64":
        return base64.b64encode(numbers.tobytes()).decode()
    return [float(number) for number in numbers]
