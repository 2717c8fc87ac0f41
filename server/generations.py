"""The generations of one answer: they run side by side and end together.

An output goes straight to the reader that waits for it, within the engine's call: no task is woken.
Outputs that come while the reader is busy wait in the engine's slots and merge there, so that a
slow reader neither holds up others nor lets a queue grow.
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
    """A generation that has not ended."""

    request: GenerationRequest
    slot: OutputSlot
    watch: GenerationWatch


class Generations:
    """All generations of one answer. Its creator has to close it, which aborts those still open."""

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
        """
        Args:
            engine: The engine that runs them.
            observer: Watches each of them.
            requests: What to generate, in the order of the answer's indices.
            record: The record of the HTTP request.
            most_at_once: How many to queue at a time, in order; None: all at once, or none.
            demanding: The parameter that an error names if its demands leave no token to choose.
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
        self._error: Exception | None = None  # ends the answer, once what was taken before is read
        self._ready: asyncio.Future[None] | None = None  # what the reader waits for
        self._receiver: Receiver | None = None
        self._deadlines: Deadlines | None = None

    @property
    def is_over(self) -> bool:
        """Whether every generation has ended and nothing is left to take."""
        return not (self._open or self._later or self._taken or self._error)

    def start(self, deadlines: Deadlines) -> None:
        """Queue the generations and start their deadlines.

        Raises:
            EngineError: the engine refused them.
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
        """Return a future that is done as soon as there is something to take."""
        self._ready = asyncio.get_running_loop().create_future()
        self._collect()
        if self._taken or self._error:
            self.wake()
        return self._ready

    def wake(self, _: object = None) -> None:
        """Wake the reader, whether there is anything to take or not."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def wait(self, receiver: Receiver) -> None:
        """Wait until there is something to take.

        Args:
            receiver: Offered every (index, output) that comes meanwhile; returns whether it took
                the output.
        """
        ready = self.ready()
        self._receiver = receiver
        try:
            await ready
        finally:
            self._receiver = None

    def take(self) -> list[tuple[int, RequestOutput]]:
        """Return the outputs that have come, each with its generation's index.

        Raises:
            EngineError: a generation failed or a deadline passed; either ends the whole answer.
        """
        self._collect()
        self.require_one()
        taken, self._taken = self._taken, []
        return taken

    def require_one(self) -> None:
        """Raise the error that ended the answer, unless there is still something to take.

        Raises:
            EngineError: see `take`.
        """
        if self._error is not None and not self._taken:
            raise self._error

    def close(self) -> None:
        """Abort the generations that are still open. Idempotent."""
        self._later.clear()
        self._error = None
        if self._deadlines is not None:
            self._deadlines.cancel()
        for index in list(self._open):
            self._end(index)

    def _queue(self, most: int) -> None:
        """Queue up to `most` more, all of them or none."""
        chosen = [self._later.popleft() for _ in range(min(most, len(self._later)))]
        slots = self._engine.admit([request for _, request in chosen])
        for (index, request), slot in zip(chosen, slots, strict=True):
            watch = self._observer.watch(index, request, self._record)
            self._open[index] = _Open(request, slot, watch)
            slot.on_ready = partial(self._on_ready, index)
            slot.offer = partial(self._offer, index, watch)

    def _offer(self, index: int, watch: GenerationWatch, output: RequestOutput) -> bool:
        """Take an output directly: the fast path of all outputs but the last.

        The engine calls it, like `_on_ready`: no error may get out.

        Returns:
            Whether the output was taken; if not, it waits in its slot.
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
        """Take an output from its slot. The engine calls it, so no error may get out."""
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
        """Take what came while the reader was busy."""
        try:
            for index in list(self._open):
                output = None if self._error else self._take(index)
                if output is not None:
                    self._taken.append((index, output))
        except Exception as error:
            self._error = error

    def _take(self, index: int) -> RequestOutput | None:
        generation = self._open[index]
        try:
            output = generation.slot.take()
        except Exception:
            self._end(index, FinishReason.ERROR)
            raise
        if output is None:
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
        generation.slot.detach()
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
        """End the answer with `error`, for it took too long, unless all of it is there."""
        self._collect()
        if self._open or self._later:
            self._error = self._error or error
            self.wake()
