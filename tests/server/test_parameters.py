"""docs/parameters.md is up to date, and no parameter of the API is left out of it."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import get_type_hints

import pytest
from openai.resources import Completions, Embeddings
from openai.resources.chat import Completions as ChatCompletions
from openai.resources.responses import Responses
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.responses import (
    FunctionToolParam,
    ResponseTextConfigParam,
    response_create_params,
)
from openai.types.shared_params import FunctionDefinition, Reasoning
from parameter_cases import CASES, EMBEDDINGS_CASES, RESPONSES_CASES, TOKENIZE_CASES, Case
from parameter_table import (
    DOCUMENT,
    EMBEDDINGS_WAYS,
    HONOURED,
    RESPONSES_WAYS,
    WAYS,
    WITHOUT_EFFECT,
    Prober,
    document,
    prober,
)

from server.protocol.base import RequestModel
from server.protocol.chat import ChatCompletionRequest, Function
from server.protocol.common import StreamOptions, unsupported_names
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingsRequest
from server.protocol.foreign import foreign_names
from server.protocol.responses import (
    FunctionTool,
    ReasoningConfig,
    ResponsesRequest,
    StreamConfig,
    TextConfig,
)
from server.protocol.tokenize import TokenizeRequest
from server.responses import not_offered_names

ON_PURPOSE = {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "safety_identifier",
    "session_id",
    "user",
}
ASKS_FOR_NOTHING = {  # fields whose only accepted value changes nothing; others are refused
    ("completions", "tool_choice"),
    ("responses", "reasoning"),
    ("responses", "stream_options"),
}
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
FRAME = {"model", "prompt", "messages", "input", "stream"}  # set by the tests themselves


@pytest.fixture(scope="module")
def asked() -> Iterator[Prober]:
    """Yield a prober that all tests share, because it remembers the answers it has seen."""
    with prober() as one:
        yield one


def test_the_document_is_up_to_date(asked: Prober) -> None:
    written = DOCUMENT.read_text(encoding="utf-8")

    assert written == document(asked), "run `make parameters` and look at what changed"


def test_no_parameter_is_missing() -> None:
    declared = {*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}
    known = {*declared, *unsupported_names(), *foreign_names(), "prediction"} - FRAME
    of_responses = {*ResponsesRequest.model_fields} - FRAME | {*not_offered_names()}

    assert {case.name for case in CASES} == known
    assert {case.name for case in RESPONSES_CASES} == known | of_responses
    assert {case.name for case in EMBEDDINGS_CASES} == {*EmbeddingsRequest.model_fields} - FRAME
    assert {case.name for case in TOKENIZE_CASES} >= {*TokenizeRequest.model_fields} - FRAME


@pytest.mark.parametrize(
    ("create", "cases"),
    [
        (Completions.create, CASES),
        (ChatCompletions.create, CASES),
        (Responses.create, RESPONSES_CASES),
        (Embeddings.create, EMBEDDINGS_CASES),
    ],
    ids=lambda each: getattr(each, "__qualname__", ""),
)
def test_no_parameter_of_openais_client_is_missing(
    create: Callable[..., object], cases: Sequence[Case]
) -> None:
    parameters = {*inspect.signature(create).parameters} - OF_THE_CLIENT - FRAME

    assert parameters <= {case.name for case in cases}


@pytest.mark.parametrize(
    ("ours", "openais"),
    [
        (FunctionTool, FunctionToolParam),
        (ReasoningConfig, Reasoning),
        (StreamConfig, response_create_params.StreamOptions),
        (TextConfig, ResponseTextConfigParam),
        (Function, FunctionDefinition),
        (StreamOptions, ChatCompletionStreamOptionsParam),
    ],
)
def test_no_part_of_a_parameter_of_openais_client_is_missing(
    ours: type[RequestModel], openais: type
) -> None:
    names = {field.alias or name for name, field in ours.model_fields.items()}

    assert {*get_type_hints(openais)} <= names


@pytest.mark.parametrize(
    ("endpoint", "case"),
    [
        *((endpoint, case) for endpoint in ("completions", "chat") for case in CASES),
        *(("responses", case) for case in RESPONSES_CASES),
    ],
    ids=lambda each: each if isinstance(each, str) else f"{each.name}={each.value}"[:40],
)
def test_nothing_is_ignored_silently_and_exits_change_no_answer(
    asked: Prober, endpoint: str, case: Case
) -> None:
    for stream in (False, True):
        with_exits, without = ((endpoint, stream, has) for has in (True, False))
        outcome = asked.outcome(case, with_exits)
        assert outcome == asked.outcome(case, without)
        if outcome == WITHOUT_EFFECT:
            assert case.name in ON_PURPOSE or (endpoint, case.name) in ASKS_FOR_NOTHING
        if outcome == HONOURED:
            texts = [
                _without_figures(asked.seen(case, way).answer) for way in (with_exits, without)
            ]
            assert texts[0] == texts[1]


@pytest.mark.parametrize("case", EMBEDDINGS_CASES, ids=lambda case: case.name)
def test_embeddings_ignore_nothing_silently(asked: Prober, case: Case) -> None:
    outcome = asked.outcome(case, EMBEDDINGS_WAYS[0])

    assert outcome != WITHOUT_EFFECT or case.name in ON_PURPOSE


def test_every_way_is_sent() -> None:
    assert len({*WAYS, *RESPONSES_WAYS}) == 12


def _without_figures(answer: str) -> list[object]:
    """Return the answer's objects without draft figures and traces."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines()]
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    for each in objects:
        answer = each.get("response", each)
        for part in (answer, *answer.get("choices", ())):
            part.pop("metrics", None)
            part.pop("early_exit_trace", None)
    assert objects
    return objects
