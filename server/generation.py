"""From a checked body and its prompts to an HTTP answer: what both completion endpoints share."""

import time
import uuid
from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from server.answer import streamed_answer, whole_answer
from server.context import ServerContext
from server.convert import to_generation_requests
from server.fan_out import fan_out
from server.protocol.common import CompletionRequestBase
from server.records import record_of
from server.render.common import AnswerFrame, Renderer
from server.service import ServedModel


async def generate_answer(
    request: Request,
    context: ServerContext,
    model: ServedModel,
    body: CompletionRequestBase,
    prompts: Sequence[Sequence[int]],
    *,
    id_prefix: str,
    renderer_type: Callable[[AnswerFrame], Renderer],
) -> Response:
    """Generate every choice and answer, streamed or whole.

    Raises:
        RequestError: a value is out of range.
        EngineError: the engine refused or failed.
        ClientDisconnect: nobody is there to answer.
    """
    limits = context.limits(model)
    # The client's X-Request-Id is never the engine's: two requests may bring the same.
    answer_id = f"{id_prefix}{uuid.uuid4().hex}"
    requests = to_generation_requests(
        body, prompts, limits, answer_id=answer_id, seed=context.seeds.draw()
    )
    stream_options = body.stream_options
    has_usage = bool(stream_options and stream_options.include_usage)
    renderer = renderer_type(
        AnswerFrame(
            answer_id=answer_id,
            created=int(time.time()),
            model=body.model,
            tokenizer=model.tokenizer,
            num_choices=len(requests),
            num_prompt_tokens=sum(map(len, prompts)),
            max_draft_tokens=limits.max_draft_tokens,
            has_usage=has_usage,
            has_continuous_usage=bool(
                has_usage and stream_options and stream_options.continuous_usage_stats
            ),
        )
    )
    record = record_of(request)
    record.num_choices = body.n or 1
    outputs = fan_out(
        [context.observer.watch(model.engine.generate(each), each, record) for each in requests]
    )
    if body.stream:
        keep_alive_s = context.settings.sse_keep_alive_interval
        return await streamed_answer(request, outputs, renderer, keep_alive_s)
    return await whole_answer(request, outputs, renderer)
