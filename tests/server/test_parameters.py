"""docs/parameters.md is true, and no parameter is lost on the way."""

import json
from collections.abc import Iterator

import pytest
from parameter_cases import CASES, Case
from parameter_table import (
    DOCUMENT,
    HONOURED,
    PATHS,
    WAYS,
    WITHOUT_EFFECT,
    Prober,
    document,
    prober,
)

from server.protocol.chat import ChatCompletionRequest
from server.protocol.common import unsupported_names
from server.protocol.completions import CompletionRequest

ON_PURPOSE = {"metadata", "prediction", "prompt_cache_key", "safety_identifier", "user"}
FRAME = {"model", "prompt", "messages", "stream"}  # every request has them


@pytest.fixture(scope="module")
def asked() -> Iterator[Prober]:
    """One server for all: what was sent once need not be sent again."""
    with prober() as one:
        yield one


def test_the_document_is_up_to_date(asked: Prober) -> None:
    written = DOCUMENT.read_text(encoding="utf-8")

    assert written == document(asked), "run `make parameters` and look at what changed"


def test_no_parameter_is_missing() -> None:
    declared = {*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}

    assert {case.name for case in CASES} == {*declared, *unsupported_names(), "prediction"} - FRAME


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}={case.value}"[:40])
def test_nothing_is_ignored_silently_and_exits_change_no_answer(asked: Prober, case: Case) -> None:
    for endpoint in PATHS:
        for stream in (False, True):
            with_exits, without = ((endpoint, stream, has) for has in (True, False))
            outcome = asked.outcome(case, with_exits)
            assert outcome == asked.outcome(case, without)
            if outcome == WITHOUT_EFFECT:
                asks_for_nothing = (case.name, endpoint) == ("tool_choice", "completions")
                assert case.name in ON_PURPOSE or asks_for_nothing
            if outcome == HONOURED:
                texts = [
                    _without_figures(asked.seen(case, way).answer) for way in (with_exits, without)
                ]
                assert texts[0] == texts[1]


def test_every_way_is_sent() -> None:
    assert len(set(WAYS)) == 8


def _without_figures(answer: str) -> list[object]:
    """The answer's objects without draft figures and traces."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines()]
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    for each in objects:
        each.pop("metrics", None)
        for choice in each["choices"]:
            choice.pop("early_exit_trace", None)
    assert objects
    return objects
