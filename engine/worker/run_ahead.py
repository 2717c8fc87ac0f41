"""The pass of the next step, launched before this step's tokens are read.

Between two steps that only decode a GPU would wait until the host has read tokens, told the
scheduler, been told what comes next, and launched it. All that the next pass needs is on the device
already, but for where its tokens stand, and that is one place further. So it is launched first; the
next step takes it if it is the one that it wants. If not (a request came, or one ended), nothing is
lost but the time it takes: what it wrote lies behind all known tokens, where whoever gets the slot
writes before reading.

The same idea: asynchronous scheduling of serving engines. Knows plain passes only.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from engine.worker.segment_runner import NewestTokens, SegmentRunner
from engine.worker.sequence_state import SequenceState

_REGAINED = 1 / 64  # of the right to be wrong, per step: so few passes are lost at most
_MOST_RIGHTS = 2.0


class _Launched(NamedTuple):
    """A pass on its way."""

    states: Sequence[SequenceState]  # as objects: one that was rebuilt is another one
    places: Sequence[Sequence[int]]
    hidden: Tensor


class RunAhead:
    """At most one pass ahead of one `DecodeStep`."""

    def __init__(self, runner: SegmentRunner) -> None:
        self._runner = runner
        self._launched: _Launched | None = None  # for the step after this one
        self._offered: _Launched | None = None  # to this one, and not taken yet
        self._rights = 1.0  # passes that may turn out not to be wanted

    def begin(self) -> None:
        """A step begins. What the one before did not take, for whatever reason, was lost."""
        self._rights = min(self._rights + _REGAINED, _MOST_RIGHTS)
        if self._offered is not None:
            self._rights -= 1.0
        self._offered, self._launched = self._launched, None

    @property
    def is_offered(self) -> bool:
        """Whether a pass for this step is on its way."""
        return self._offered is not None

    def take(
        self, states: Sequence[SequenceState], places: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """The last hidden states [T, E] of the pass that was launched ahead, if it is of these
        tokens.
        """
        offered = self._offered
        if offered is None or offered.states != states or offered.places != places:
            return None
        self._offered = None
        return offered.hidden

    def decline(self) -> None:
        """The step drafts instead, knowing what that loses: that is no mistake."""
        self._offered = None

    @property
    def is_allowed(self) -> bool:
        """Whether few enough were launched in vain."""
        return self._rights >= 1.0

    def launch(self, states: Sequence[SequenceState], tokens: NewestTokens) -> None:
        """Launch the pass for the tokens behind those of the step that is under way. Its states
        and logits lie where this step's lay.
        """
        hidden = self._runner.run_through(tokens)
        if hidden is not None:
            self._launched = _Launched(states, tokens.places, hidden)
