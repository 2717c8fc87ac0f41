"""The generations of one answer, side by side: their outputs as they come, and one end for all.

An output goes straight to whoever waits for it, within the call that brings it out of the engine:
no task is woken for it. What comes while the reader is busy waits in the engine's slots and merges
there, so a slow reader holds up nobody and costs no queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from engine import AsyncEngine
from engine.errors import DeadEnd, EngineError, EngineStopped, RequestFailed
from engine.output_slot import OutputSlot
from engine.request import FinishReason, GenerationRequest, RequestOutput
from server.deadlines import Deadlines
from server.observer import GenerationWatch, Observer
from server.records import RequestRecord

Receiver: TypeAlias = Callable[[int, RequestOutput], bool]


@dataclass(frozen=True, slots=True)
class _Open:
    """A generation that goes on."""

    request: GenerationRequest
    slot: OutputSlot
    watch: GenerationWatch


class Generations:
    """One per answer. Whoever made it closes it, and then none of them goes on."""

    def __init__(
        self,
        engine: AsyncEngine,
        observer: Observer,
        requests: Sequence[GenerationRequest],
        record: RequestRecord,
        *,
        most_at_once: int | None = None,
        demanding: str | None = None,
    ) -> None:
        """Args:
        most_at_once: Queue only so many at a time, in their order; None: all at once, or none.
        demanding: The parameter to name where what is asked for leaves no token.
        """
        self._engine = engine
        self._observer = observer
        self._requests = requests
        self._record = record
        self._most_at_once = most_at_once or len(requests)
        self._demanding = demanding
        self._later = deque(enumerate(requests))  # not queued yet
        self._open: dict[int, _Open] = {}  # by index
        self._taken: list[tuple[int, RequestOutput]] = []  # for the next `take`
        self._error: Exception | None = None  # ends all; comes after what was taken
        self._ready: asyncio.Future[None] | None = None  # what the reader waits for
        self._receiver: Receiver | None = None
        self._deadlines: Deadlines | None = None

    @property
    def is_over(self) -> bool:
        """Whether the last output of each was taken."""
        return not (self._open or self._later or self._taken or self._error)

    def start(self, deadlines: Deadlines) -> None:
        """Queue them; the time that they may take begins.

        Raises:
            EngineError: they are refused.
        """
        self._record.num_generations += len(self._requests)
        try:
            self._queue(self._most_at_once)
        except EngineError:
            self._observer.note_refusal(self._requests, self._record)
            raise
        ids = [each.request.request_id for each in self._open.values()]
        deadlines.set(lambda: any(map(self._engine.has_started, ids)), self._fail)
        self._deadlines = deadlines

    def ready(self) -> asyncio.Future[None]:
        """Done as soon as there is something to take."""
        self._ready = asyncio.get_running_loop().create_future()
        self._collect()
        if self._taken or self._error:
            self.wake()
        return self._ready

    def wake(self, _: object = None) -> None:
        """Have who waits look, whether there is anything or not."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def wait(self, receiver: Receiver) -> None:
        """Wait until there is something to take.

        Args:
            receiver: Offered every (index, output) that comes meanwhile; says whether it took it.
        """
        ready = self.ready()
        self._receiver = receiver
        try:
            await ready
        finally:
            self._receiver = None

    def take(self) -> list[tuple[int, RequestOutput]]:
        """What has come, with each one's index.

        Raises:
            EngineError: one of them failed, or all took too long; an answer is given whole or not
                at all.
        """
        self._collect()
        self.require_one()
        taken, self._taken = self._taken, []
        return taken

    def require_one(self) -> None:
        """Have something to take, or nothing yet.

        Raises:
            EngineError: see `take`.
        """
        if self._error is not None and not self._taken:
            raise self._error

    def close(self) -> None:
        """End those that go on. Idempotent."""
        self._later.clear()
        self._error = None
        if self._deadlines is not None:
            self._deadlines.cancel()
        for index in list(self._open):
            self._end(index)

    def _queue(self, most: int) -> None:
        """Queue up to so many more, all or none."""
        chosen = [self._later.popleft() for _ in range(min(most, len(self._later)))]
        slots = self._engine.admit([request for _, request in chosen])
        for (index, request), slot in zip(chosen, slots, strict=True):
            watch = self._observer.watch(request, self._record)
            self._open[index] = _Open(request, slot, watch)
            slot.on_ready = partial(self._on_ready, index)
            slot.offer = partial(self._offer, index, watch)

    def _offer(self, index: int, watch: GenerationWatch, output: RequestOutput) -> bool:
        """Called by the engine, as `_on_ready`: the shortest way, of all outputs but the last.

        Returns:
            Whether the output is taken; else it waits in its slot.
        """
        if self._receiver is None or self._ready is None or self._ready.done():
            return False  # the reader is busy
        if output.finish_reason is not None:
            return False
        try:
            watch.note(output)
            if self._receiver(index, output):
                return True
            self._taken.append((index, output))
        except Exception as error:
            self._error = error
        self.wake()
        return True

    def _on_ready(self, index: int) -> None:
        """Called by the engine: nothing that goes wrong here may disturb it."""
        if self._ready is None or self._ready.done():
            return  # the reader is busy, and will look for itself
        try:
            output = self._take(index)
            if output is None or (self._receiver is not None and self._receiver(index, output)):
                return
            self._taken.append((index, output))
        except Exception as error:
            self._error = error
        self.wake()

    def _collect(self) -> None:
        """Take what has come while the reader was busy."""
        try:
            for index in list(self._open):
                output = None if self._error else self._take(index)
                if output is not None:
                    self._taken.append((index, output))
        except Exception as error:
            self._error = error

    def _take(self, index: int) -> RequestOutput | None:
        generation = self._open.get(index)
        try:
            output = None if generation is None else generation.slot.take()
        except Exception:
            self._end(index, FinishReason.ERROR)
            raise
        if generation is None or output is None:
            return None
        generation.watch.note(output)
        if output.finish_reason is not None:
            self._end(index)
            self._require_undisturbed(output)
            if self._later:
                self._queue(1)
        return output

    def _end(self, index: int, reason: FinishReason | None = None) -> None:
        generation = self._open.pop(index)
        generation.slot.on_ready, generation.slot.offer = _nobody, _refuse
        generation.watch.end(reason)
        self._engine.abort(generation.request.request_id)

    def _require_undisturbed(self, output: RequestOutput) -> None:
        if output.finish_reason is FinishReason.DEAD_END:
            prefix = f"{self._demanding}: " if self._demanding else ""
            raise DeadEnd(f"{prefix}{output.error}.", param=self._demanding)
        if output.finish_reason is FinishReason.ERROR:
            raise RequestFailed(output.error or "the request failed")
        if output.finish_reason is FinishReason.ABORT:
            raise EngineStopped("aborted at shutdown")

    def _fail(self, error: EngineError) -> None:
        """It took too long, unless all is there."""
        self._collect()
        if self._open or self._later:
            self._error = self._error or error
            self.wake()


def _nobody() -> None:
    """Nobody waits any more."""


def _refuse(_: RequestOutput) -> bool:
    """Nor takes anything."""
    return False
