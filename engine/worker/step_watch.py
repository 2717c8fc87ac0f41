"""What a step takes as a whole, what its parts take where that can be told, and whether it tells of
steps of its kind. Knows the clock, and what has been launched.
"""

from collections.abc import Callable

from engine.worker.device_queue import DeviceQueue

_LONGEST_BETWEEN_S = 1e-3  # from step to step, while there is something to do
_PASSES = 8  # plain passes of which one tells what they take: on a GPU the host would feel more


class StepWatch:
    """Of one `DecodeStep`."""

    def __init__(self, clock: Callable[[], float], *, is_queued: bool) -> None:
        """Args:
        clock: In seconds.
        is_queued: Calls return before the device has computed.
        """
        self._clock = clock
        self._queue = DeviceQueue(clock) if is_queued else None
        self._began = self._ended = 0.0  # this step, and the one before
        self._num_untold = 0  # passes since one told what it took
        self._is_untold = False
        self._was_plain = False
        self.ran_ahead = False  # its pass was launched in the step before

    @property
    def is_queued(self) -> bool:
        """Whether calls return before the device has computed."""
        return self._queue is not None

    @property
    def tells_of_plain_steps(self) -> bool:
        """Whether what this step takes, which has no drafts, is what such steps take: on a GPU
        where the one before launched its pass, or could have.
        """
        return self._queue is None or self.ran_ahead or self._was_plain

    def begin(self, *, is_idle: bool) -> None:
        """A step begins.

        Args:
            is_idle: Nothing is launched.
        """
        self._is_untold = self.ran_ahead = False
        self._began = self._clock()
        if self._queue is not None:
            self._queue.begin(is_idle=is_idle)

    def now(self) -> float:
        """In seconds."""
        return self._clock()

    def launch(self, num_tokens: int, seconds: float) -> None:
        """A part was launched that is known to take so long."""
        if self._queue is not None:
            self._queue.add(num_tokens, seconds)

    def note_pass(self, *, is_ahead: bool) -> bool:
        """All segments have run as one. Returns whether they are to be told of."""
        self._num_untold += 1
        is_spared = self._queue is not None and self._num_untold < _PASSES
        self.ran_ahead = is_ahead
        self._is_untold = is_ahead or is_spared
        if not self._is_untold:
            self._num_untold = 0
        return not self._is_untold

    def part(self, seconds: float) -> float | None:
        """What a part took that has ended now; None: that cannot be told.

        Args:
            seconds: Since it was called.
        """
        if self._is_untold:
            return None
        return seconds if self._queue is None else self._queue.wait()

    def end(self, *, is_plain: bool) -> float:
        """Seconds from the end of the step before, unless there was a pause; else from this one's
        beginning. What is ready when a step begins has been computed between them.

        Args:
            is_plain: It only decoded, and nothing was to be drafted.
        """
        before, self._ended = self._ended, self._clock()
        self._was_plain = is_plain
        follows = self._began - before < _LONGEST_BETWEEN_S
        return self._ended - (before if follows else self._began)
