"""Where a request's outputs wait for their reader, who takes all of them as one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.request import RequestOutput


class OutputSlot:
    """The outputs of one request that nobody has taken yet."""

    def __init__(self, interval: int = 1) -> None:
        """
        Args:
            interval: Tokens that have to wait before the reader is called; 0: no number is enough.
                The first output and the last are always enough.
        """
        self.on_ready: Callable[[], object] = _nobody  # called whenever there is enough to take
        # Called first, with an output that need not wait; returns whether the reader took it.
        self.offer: Callable[[RequestOutput], bool] = _refuse
        self._interval = interval
        self._pending: list[RequestOutput] = []
        self._num_pending_tokens = 0
        self._is_first = True
        self._is_ready = False
        self._error: Exception | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is enough to take."""
        return self._is_ready

    def put(self, output: RequestOutput) -> None:
        """Add an output to those that wait, unless the reader takes it at once."""
        num_tokens = self._num_pending_tokens + len(output.token_ids)
        is_enough = 0 < self._interval <= num_tokens
        if not is_enough:
            is_enough = self._is_first or output.finish_reason is not None
        if is_enough and not self._pending and self.offer(output):
            self._is_first = False
            return
        self._pending.append(output)
        self._num_pending_tokens = num_tokens
        if is_enough:
            self._is_ready = True
            self.on_ready()

    def put_step(self, outputs: Sequence[RequestOutput]) -> None:
        """Add the outputs of one step, oldest first; only the last may end the request."""
        for output in outputs:
            self.put(output)

    def detach(self) -> None:
        """Call the reader no more: it has left."""
        self.on_ready, self.offer = _nobody, _refuse

    def fail(self, error: Exception) -> None:
        """Note that no more outputs will come, and why."""
        self._error = error
        self._is_ready = True
        self.on_ready()

    def take(self) -> RequestOutput | None:
        """Return all outputs since the last call as one; None while there is not enough.

        Raises:
            EngineError: What `fail` was given, once everything before it has been taken.
        """
        if not self._is_ready:
            return None
        if not self._pending:
            assert self._error is not None, "a slot is ready with something in it"
            raise self._error
        self._is_ready = self._error is not None
        output = self._pending[0] if len(self._pending) == 1 else merged(self._pending)
        self._pending.clear()
        self._num_pending_tokens, self._is_first = 0, False
        return output


async def next_output(slot: OutputSlot) -> RequestOutput:
    """Wait for a slot's next output, in a task that waits for nothing else.

    Raises:
        EngineError: See `OutputSlot.take`.
    """
    while (output := slot.take()) is None:
        ready = asyncio.Event()
        slot.on_ready = ready.set
        await ready.wait()
    return output


def merged(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Merge consecutive outputs into one, in linear time."""
    return replace(
        outputs[-1],
        text="".join(output.text for output in outputs),
        token_ids=tuple(each for output in outputs for each in output.token_ids),
        logprobs=tuple(each for output in outputs for each in output.logprobs),
        trace=tuple(each for output in outputs for each in output.trace),
        prompt_logprobs=tuple(each for output in outputs for each in output.prompt_logprobs),
    )


def _nobody() -> None:
    """Do nothing: there is no reader."""


def _refuse(_: RequestOutput) -> bool:
    """Take no output: it waits until it is asked for."""
    return False
