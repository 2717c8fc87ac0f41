"""Signs of life from the worker: bytes in a pipe, written by a thread of its own.

Neither a long step nor a kernel that never returns stops this thread, because kernels run without
the interpreter's lock. Silence therefore means that the whole process hangs or is stopped; a step
that takes too long is noticed by a separate timeout. The pipe also tells the worker about the
server: once the server is gone, writing fails, and the worker ends even in the middle of a step.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_TICKS = 10  # per timeout
_LONGEST_TICK_S = 0.5


class Heartbeat:
    """The worker's end of the pipe."""

    def __init__(self, pipe: int, interval_s: float) -> None:
        self._pipe = pipe
        self._interval_s = interval_s

    def start(self) -> None:
        """Beat until the process ends; end it when nobody listens any more."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while True:
            try:
                os.write(self._pipe, b".")
            except OSError:
                os._exit(0)
            time.sleep(self._interval_s)


class Watchdog:
    """The server's end of the pipe: calls back when the worker is silent or busy for too long.

    The callback gets the reason, and whether the worker was busy for too long: then what it
    computes is to blame.

    The watchdog counts its own ticks instead of reading a clock, so that a server that was itself
    stopped or starved does not blame its worker. Silence counts from the first beat on.
    """

    def __init__(
        self,
        pipe: int,
        on_hang: Callable[[str, bool], None],
        *,
        step_timeout_s: float,
        heartbeat_timeout_s: float,
    ) -> None:
        self._pipe = pipe
        self._on_hang = on_hang
        self._step_timeout_s = step_timeout_s
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._tick_s = tick_s(step_timeout_s, heartbeat_timeout_s)
        self._silent_s: float | None = None
        self._busy_s: float | None = None
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe, self._hear)
        self._task = loop.create_task(self._run(), name="watchdog")

    def begin(self) -> None:
        """Note that the worker has something to do, or has just shown progress with it."""
        self._busy_s = 0.0

    def end(self) -> None:
        """Note that the worker is done."""
        self._busy_s = None

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._pipe < 0:
            return
        self._task.cancel()
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = -1

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            if os.read(self._pipe, 1 << 12):
                self._silent_s = 0.0
            else:  # end of file: the worker is dead, which `WorkerProcess` notices
                asyncio.get_running_loop().remove_reader(self._pipe)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            if self._silent_s is not None:
                self._silent_s += self._tick_s
                if self._silent_s > self._heartbeat_timeout_s:
                    reason = f"it gave no sign of life for {self._heartbeat_timeout_s:g} s"
                    self._on_hang(reason, False)
                    return
            if self._busy_s is not None:
                self._busy_s += self._tick_s
                if self._busy_s > self._step_timeout_s:
                    self._on_hang(f"it was busy for more than {self._step_timeout_s:g} s", True)
                    return


def tick_s(*timeouts_s: float) -> float:
    """Return how often to beat and to check, so as to keep timeouts to about a tenth."""
    return min(_LONGEST_TICK_S, min(timeouts_s) / _TICKS)
