"""Times whole steps and, where possible, their parts. Knows the clock and what was launched."""

from collections.abc import Callable

from engine.worker.device_queue import DeviceQueue

_LONGEST_BETWEEN_S = 1e-3  # longest time between two steps that counts as no pause
_SETTLED = 2  # plain steps after which one takes as long as among many
_NEVER_AHEAD = 16  # plain steps without any that ran ahead after which none is expected to
_PASSES = 8  # one in this many plain passes on a GPU is timed; timing more would slow the host


class StepWatch:
    """Times the steps of one `DecodeStep`."""

    def __init__(self, clock: Callable[[], float], *, is_queued: bool) -> None:
        """
        Args:
            clock: In seconds.
            is_queued: Whether calls return before the device has computed.
        """
        self._clock = clock
        self._queue = DeviceQueue(clock) if is_queued else None
        self._began = self._ended = 0.0  # when this step began, and the one before ended
        self._num_untold = 0  # plain passes since the last one that was timed
        self._is_untold = False  # whether the parts of this step are not timed
        self._num_plain = 0  # plain steps since the last one of another kind
        self._num_late = _NEVER_AHEAD  # plain steps since the last one whose pass ran ahead
        self.ran_ahead = False  # whether this step's pass was launched in the step before

    @property
    def is_queued(self) -> bool:
        """Whether calls return before the device has computed."""
        return self._queue is not None

    @property
    def tells_of_plain_steps(self) -> bool:
        """Whether this step, which has no drafts, takes as long as such steps usually do.

        That is so if the step before launched its pass. Where none does that, it is so after a few
        others: the first ones have to learn what became of the drafts before, and find caches that
        those have used. Where passes run ahead, a step whose own did not, because the batch has
        changed, tells nothing.
        """
        if self.ran_ahead:
            return True
        return self._num_plain >= _SETTLED and self._num_late >= _NEVER_AHEAD

    def begin(self, *, is_idle: bool) -> None:
        """Begin a step.

        Args:
            is_idle: Whether the device has nothing to do.
        """
        self._is_untold = self.ran_ahead = False
        self._began = self._clock()
        if self._queue is not None:
            self._queue.begin(is_idle=is_idle)

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._clock()

    def launch(self, num_tokens: int, seconds: float) -> None:
        """Note that a part was launched, and the seconds that it is known to take."""
        if self._queue is not None:
            self._queue.add(num_tokens, seconds)

    def note_pass(self, *, is_ahead: bool) -> bool:
        """Note that all segments have run as one call; return whether to account for their cost."""
        self._num_untold += 1
        is_spared = self._queue is not None and self._num_untold < _PASSES
        self.ran_ahead = is_ahead
        self._is_untold = is_ahead or is_spared
        if not self._is_untold:
            self._num_untold = 0
        return not self._is_untold

    def part(self, seconds: float) -> float | None:
        """Return the seconds of a part that has just ended; None: unknown.

        Args:
            seconds: Seconds since the part was called.
        """
        if self._is_untold:
            return None
        return seconds if self._queue is None else self._queue.wait()

    def end(self, *, is_plain: bool) -> float:
        """End the step; return its seconds.

        They count from the end of the step before, because a device may compute between two steps,
        or from this step's beginning if there was a pause in between.

        Args:
            is_plain: Whether the step only decoded while drafting was off.
        """
        before, self._ended = self._ended, self._clock()
        self._num_plain = self._num_plain + 1 if is_plain else 0
        self._num_late = 0 if self.ran_ahead else self._num_late + is_plain
        follows = self._began - before < _LONGEST_BETWEEN_S
        return self._ended - (before if follows else self._began)
