"""Structures are compiled in another process, within limits, and none holds up another."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from liveness import is_alive

from engine.checkpoint import resolve_model
from engine.errors import EngineOverloaded, EngineStopped, StructureError
from engine.grammar import approver as approver_module
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


def slow(number: int) -> Structure:
    return replace(SLOW, source=SLOW.source + "a" * number)


def children(approver: Approver) -> list[int]:
    """Return the processes that structures are being tried in."""
    listed = Path(f"/proc/{approver.pid}/task/{approver.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


async def some_children(approver: Approver) -> list[int]:
    while not (some := children(approver)):
        await asyncio.sleep(0.01)
    return some


async def leave(approver: Approver, tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    while children(approver):
        await asyncio.sleep(0.01)


async def refusal(approver: Approver, structure: Structure) -> str:
    with pytest.raises(StructureError) as caught:
        await approver.approve(structure)
    return str(caught.value)


@pytest.mark.parametrize(
    ("structure", "why"),
    [
        (Structure(kind="json_schema", source='{"$ref": "#"}'), "leads back to itself"),
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


async def test_nothing_is_tried_that_nobody_waits_for(approver: Approver) -> None:
    """Neither what has begun nor what waits for its turn holds anybody up."""
    leaving = [asyncio.create_task(approver.approve(slow(number))) for number in range(12)]
    await some_children(approver)
    started = time.monotonic()
    await leave(approver, leaving)
    await approver.approve(Structure(kind="regex", source="[b-y]+"))
    assert time.monotonic() - started < TIMEOUT_S


async def test_whoever_still_waits_gets_the_verdict(approver: Approver) -> None:
    leaving = asyncio.create_task(approver.approve(slow(20)))
    staying = asyncio.create_task(refusal(approver, slow(20)))
    await some_children(approver)
    leaving.cancel()
    assert await staying == "it takes longer than 3 s to compile"


async def test_no_more_than_some_wait(approver: Approver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approver_module, "_MAX_TRIALS", 1)
    waiting = [asyncio.create_task(approver.approve(slow(30))) for _ in range(3)]
    await some_children(approver)
    with pytest.raises(EngineOverloaded):
        await approver.approve(slow(31))
    assert not any(task.done() for task in waiting), "they wait for the same verdict"
    await leave(approver, waiting)


async def test_what_the_machine_is_to_blame_for_is_tried_again(approver: Approver) -> None:
    for _ in range(2):
        waiting = asyncio.create_task(approver.approve(slow(40)))
        (child,) = await some_children(approver)
        os.kill(child, signal.SIGKILL)  # as the kernel does when no memory is left
        with pytest.raises(EngineOverloaded):
            await waiting


async def test_only_cpu_time_is_held_against_a_structure(
    approver: Approver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approver_module, "_PATIENCE", 0.1)
    for _ in range(2):
        with pytest.raises(EngineOverloaded):
            await approver.approve(slow(50))


@pytest.mark.parametrize(
    ("fault", "is_checked"),
    [
        ("import tempfile; tempfile.tempdir = '/nowhere'", True),  # no directory can be written to
        ("import os; os.memfd_create = lambda _: os.open('/nowhere/x', 0)", False),
    ],
)
async def test_what_its_system_lacks_is_not_the_structures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, is_checked: bool
) -> None:
    (tmp_path / "sitecustomize.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    one = Approver(resolve_model("smollm2-135m-instruct"), 49152, [2], TIMEOUT_S)
    try:
        if is_checked:
            await one.approve(FINE)
        else:
            with pytest.raises(EngineOverloaded):
                await one.approve(FINE)
    finally:
        await one.close()


async def test_a_lost_process_is_replaced(approver: Approver) -> None:
    assert approver.pid is not None
    os.kill(approver.pid, signal.SIGKILL)
    await approver.approve(Structure(kind="regex", source="[A-Z]+"))


async def test_it_ends_with_its_server(approver: Approver) -> None:
    pid = approver.pid
    waiting = asyncio.create_task(approver.approve(Structure(kind="regex", source=".{0,30000}")))
    (child,) = await some_children(approver)
    await approver.close()
    assert not Path(f"/proc/{pid}").exists()
    while is_alive(child):
        await asyncio.sleep(0.01)
    with pytest.raises(EngineStopped):
        await waiting
