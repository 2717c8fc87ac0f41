"""Launches the pass of the next step before this step's tokens are read.

Between two steps that only decode, a GPU would wait until the host has read the tokens, told the
scheduler, received the next plan and launched it. All that the next pass needs is on the device
already, except for the positions of its tokens, which are one further on. So the pass is launched
first, and the next step takes it if it is the one that its plan asks for. If not (a request came or
ended), only the pass's time is lost: it wrote to positions after all known tokens, and whoever gets
these slots writes to them before reading.

Serving engines know the idea as asynchronous scheduling. Applies to plain passes only.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from engine.worker.segment_runner import NewestTokens, SegmentRunner
from engine.worker.sequence_state import SequenceState

_REGAINED = 1 / 64  # passes that may be lost per step, in the long run
_MOST_RIGHTS = 2.0  # passes that may be lost in a short time


class _Launched(NamedTuple):
    """A pass that has been launched ahead."""

    states: Sequence[SequenceState]  # compared as objects: a rebuilt state is a different one
    places: Sequence[Sequence[int]]
    hidden: Tensor


class RunAhead:
    """Launches at most one pass ahead for one `DecodeStep`."""

    def __init__(self, runner: SegmentRunner) -> None:
        self._runner = runner
        self._launched: _Launched | None = None  # for the next step
        self._offered: _Launched | None = None  # for this step, and not taken yet
        self._rights = 1.0  # passes that may still be launched in vain

    def begin(self) -> None:
        """Begin a step. A pass that the step before did not take was launched in vain."""
        self._rights = min(self._rights + _REGAINED, _MOST_RIGHTS)
        if self._offered is not None:
            self._rights -= 1.0
        self._offered, self._launched = self._launched, None

    @property
    def is_offered(self) -> bool:
        """Whether a pass for this step has been launched."""
        return self._offered is not None

    def take(
        self, states: Sequence[SequenceState], places: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """Return the last hidden states [T, E] of the pass run ahead, if its tokens are these."""
        offered = self._offered
        if offered is None or offered.states != states or offered.places != places:
            return None
        self._offered = None
        return offered.hidden

    def decline(self) -> None:
        """Give up the pass because the step drafts; it does not count as launched in vain."""
        self._offered = None

    @property
    def is_allowed(self) -> bool:
        """Whether few enough passes were launched in vain to launch another one."""
        return self._rights >= 1.0

    def launch(self, states: Sequence[SequenceState], tokens: NewestTokens) -> None:
        """Launch the pass for the tokens after those of the current step.

        Its states and logits overwrite the current step's.
        """
        hidden = self._runner.run_through(tokens)
        if hidden is not None:
            self._launched = _Launched(states, tokens.places, hidden)
