"""The server's side of approving structures, before a worker sees them.

They are tried in a process that can be killed. It is started with the first structure: it costs
seconds and memory that a server without structures need not spend.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.errors import EngineOverloaded, EngineStopped, StructureError
from engine.request import Structure

_MAX_REMEMBERED = 1024
_MAX_AT_ONCE = 4  # structures tried at once, so that a few slow ones do not hold up the others
_MAX_TRIALS = 64  # structures being tried or waiting for their turn
_START_TIMEOUT_S = 120.0  # for the process to load, added to each structure's own timeout
# How much longer than its CPU time a structure may take by the clock. On a busy machine it gets the
# CPU for a part of the time only, and what it may take shall not depend on that.
_PATIENCE = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trial:
    """A structure that is being tried, for everybody who waits for its verdict."""

    verdict: asyncio.Task[str | None]
    num_waiting: int = 0


class Approver:
    """Asks the `engine.grammar.forge` process about each structure, and remembers its verdict.

    A structure is tried only as long as somebody waits for its verdict.
    """

    def __init__(
        self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int], timeout_s: float
    ) -> None:
        """
        Args:
            directory: The checkpoint, for its vocabulary.
            vocab_size: Number of token ids.
            eos_token_ids: Token ids that end a sequence.
            timeout_s: How much CPU time one structure may take to compile.
        """
        self._arguments = [str(directory), str(vocab_size), *map(str, eos_token_ids)]
        self._timeout_s = timeout_s
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._trials: dict[bytes, _Trial] = {}
        self._is_closed = False
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self._num_asked = 0

    @property
    def pid(self) -> int | None:
        """The process's id while it lives."""
        return None if self._process is None else self._process.pid

    async def approve(self, structure: Structure) -> None:
        """Return once it is known that the structure can be followed.

        Raises:
            StructureError: It cannot be followed; the message says why.
            EngineOverloaded: It cannot be checked now.
            EngineStopped: The approver was closed.
        """
        key = sha256(f"{structure.kind} {structure.source}".encode()).digest()
        if key not in self._verdicts:
            self._verdicts[key] = await self._wait_for_verdict(key, structure)
        self._verdicts.move_to_end(key)
        error = self._verdicts[key]
        if len(self._verdicts) > _MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        if error is not None:
            raise StructureError(error)

    async def close(self) -> None:
        """End the process for good. Idempotent."""
        self._is_closed = True
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its children
            await process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _wait_for_verdict(self, key: bytes, structure: Structure) -> str | None:
        trial = self._trials.get(key)
        if trial is None:
            if len(self._trials) >= _MAX_TRIALS:
                raise EngineOverloaded("too many structures wait to be checked")
            trial = self._trials[key] = _Trial(asyncio.create_task(self._find_out(structure)))
        trial.num_waiting += 1
        try:
            return await asyncio.shield(trial.verdict)  # others may wait for it too
        finally:
            trial.num_waiting -= 1
            if trial.num_waiting == 0:
                trial.verdict.cancel()
                del self._trials[key]

    async def _find_out(self, structure: Structure) -> str | None:
        async with self._slots:
            for _ in range(2):  # a process that was lost is replaced once
                try:
                    async with asyncio.timeout(_START_TIMEOUT_S + _PATIENCE * self._timeout_s):
                        return await self._ask(structure)
                except (OSError, TimeoutError) as error:
                    logger.warning("the structure checker was lost: %r", error)
                    await self._end()
        raise EngineOverloaded("structures cannot be checked now")

    async def _ask(self, structure: Structure) -> str | None:
        async with self._starting:
            if self._is_closed:
                raise EngineStopped("the server is shutting down")
            if self._process is None:
                await self._start()
        process = self._process
        if process is None or process.stdin is None:
            raise OSError("it has ended")
        self._num_asked += 1
        number = self._num_asked
        order = {
            "id": number,
            "kind": structure.kind,
            "source": structure.source,
            "cpu_s": self._timeout_s,
            "wall_s": _PATIENCE * self._timeout_s,
        }
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            process.stdin.write(_line(order))
            await process.stdin.drain()
            error: str | None = await answer
            return error
        except asyncio.CancelledError:  # nobody waits for it any more
            process.stdin.write(_line({"drop": number}))
            raise
        finally:
            self._asked.pop(number, None)

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "engine.grammar.forge",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand the process's answers to those who asked, until it ends."""
        assert process.stdout is not None, "it is a pipe"
        while line := await process.stdout.readline():
            verdict = json.loads(line)
            answer = self._asked.get(verdict["id"])
            if answer is None or answer.done():
                continue
            if "failure" in verdict:
                logger.warning("a structure could not be checked: %s", verdict["failure"])
                answer.set_exception(EngineOverloaded("structures cannot be checked now"))
            else:
                answer.set_result(verdict["error"])
        if self._process is process:
            self._process = None
        await process.wait()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(OSError("it has ended"))


def _line(order: Mapping[str, object]) -> bytes:
    return json.dumps(order).encode() + b"\n"
