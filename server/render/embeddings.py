"""Renders answers of /v1/embeddings: vectors cut to the dimensions asked for, and normalized."""

import base64
import json
from collections.abc import Iterator, Sequence

import numpy as np

from engine.request import RequestOutput
from server.protocol.embeddings import Embedding, EmbeddingsRequest, EmbeddingsUsage


def render_embeddings(body: EmbeddingsRequest, outputs: Sequence[RequestOutput]) -> Iterator[bytes]:
    """Yield the JSON of the answer to all inputs, an `Embeddings`, about one input at a time.

    All of it may be many megabytes.
    """
    yield b'{"object":"list","data":['
    for index, output in enumerate(outputs):
        embedding = Embedding(index=index, embedding=_vector(body, output))
        yield (b"," if index else b"") + embedding.model_dump_json().encode()
    num_tokens = sum(output.num_prompt_tokens for output in outputs)
    usage = EmbeddingsUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
    yield f'],"model":{json.dumps(body.model)},"usage":{usage.model_dump_json()}}}'.encode()


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
