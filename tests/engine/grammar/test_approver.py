"""Structures are tried out elsewhere, within limits, and one never holds up another."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.checkpoint import resolve_model
from engine.errors import EngineStopped, StructureError
from engine.grammar.approver import Approver
from engine.request import Structure

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FINE = Structure(kind="json_schema", source=json.dumps(PERSON))
SLOW = Structure(kind="regex", source="([a-z]|[0-9]b)" * 8000)  # several times the time allowed
TIMEOUT_S = 3.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def approver() -> AsyncIterator[Approver]:
    one = Approver(resolve_model("smollm2-135m-instruct"), 49152, [2], TIMEOUT_S)
    await one.approve(FINE)
    yield one
    await one.close()


async def refusal(approver: Approver, structure: Structure) -> str:
    with pytest.raises(StructureError) as caught:
        await approver.approve(structure)
    return str(caught.value)


@pytest.mark.parametrize(
    ("structure", "why"),
    [
        (Structure(kind="json_schema", source='{"$ref": "#"}'), "no output"),
        (Structure(kind="json_schema", source='{"type": "string", "format": "x"}'), "#/format"),
        (Structure(kind="regex", source="["), "Unclosed"),
        (Structure(kind="regex", source="("), "not closed"),
        (Structure(kind="grammar", source="root ::= nope"), ""),
        (Structure(kind="structural_tag", source='{"type": "nope"}'), ""),
        (Structure(kind="grammar", source="root ::= " + "é" * 9000), ""),
        (Structure(kind="json_schema", source='{"$ref": "#/' + "é" * 9000 + '"}'), "nowhere"),
        (Structure(kind="json_schema", source='{"a":' * 5000 + "1" + "}" * 5000), ""),
    ],
)
async def test_what_cannot_be_followed_is_refused(
    approver: Approver, structure: Structure, why: str
) -> None:
    said = await refusal(approver, structure)
    assert why in said
    assert not said.endswith("."), "it becomes part of a sentence"


async def test_a_slow_one_meets_its_deadline_and_holds_up_nothing(approver: Approver) -> None:
    slow = asyncio.create_task(refusal(approver, SLOW))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    await approver.approve(Structure(kind="regex", source="[a-z]+"))
    assert not slow.done()
    assert time.monotonic() - started < TIMEOUT_S
    assert await slow == "it takes longer than 3 s to compile"


async def test_what_was_approved_is_not_tried_again(approver: Approver) -> None:
    started = time.monotonic()
    for _ in range(1000):
        await approver.approve(FINE)
    assert await refusal(approver, SLOW) == "it takes longer than 3 s to compile"
    assert time.monotonic() - started < 1


async def test_a_lost_process_is_replaced(approver: Approver) -> None:
    assert approver.pid is not None
    os.kill(approver.pid, signal.SIGKILL)
    await approver.approve(Structure(kind="regex", source="[A-Z]+"))


async def test_it_ends_with_its_server(approver: Approver) -> None:
    pid = approver.pid
    waiting = asyncio.create_task(approver.approve(Structure(kind="regex", source=".{0,30000}")))
    await asyncio.sleep(0.1)
    await approver.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(EngineStopped):
        await waiting
