"""Measures whole steps of about one batch size: plain ones, those with drafts, and those in which
drafts were looked for and none was found. Knows seconds only.
"""

from engine.worker.measured_bias import MeasuredBias


class StepTimes:
    """Corrects the modelled seconds of steps by the measured ones."""

    def __init__(self, like: "StepTimes | None" = None) -> None:
        """
        Args:
            like: The times of another batch size, to start with.
        """
        self._plain: MeasuredBias = MeasuredBias(None if like is None else like._plain)
        self._drafting: MeasuredBias = MeasuredBias(None if like is None else like._drafting)
        self._straight: MeasuredBias = MeasuredBias(None if like is None else like._straight)

    @property
    def has_seen_plain(self) -> bool:
        """Whether enough plain steps of this batch size were measured to correct them."""
        return self._plain.is_begun

    @property
    def knows_drafting(self) -> bool:
        """Whether so many steps with drafts were measured that one more changes little."""
        return self._drafting.is_known

    def plain(self, modelled_s: float) -> float:
        """Return the corrected seconds of a plain step."""
        return modelled_s * self._plain.factor

    def note_plain(self, modelled_s: float, took_s: float, num_steps: int = 1) -> None:
        """Learn from a measured plain step.

        Args:
            num_steps: See `MeasuredBias.observe`.
        """
        self._plain.observe(modelled_s, took_s, num_steps)

    def in_plain_steps(self, modelled_s: float, plain_s: float) -> float:
        """Return how many plain steps take as long as a step with drafts, corrected.

        Args:
            modelled_s: Modelled seconds of the step with drafts.
            plain_s: Modelled seconds of a plain step.
        """
        bias = self._drafting if self._drafting.is_begun else self._plain
        return modelled_s * bias.factor / (plain_s * self._plain.factor)

    def drafting(self, modelled_s: float, took_s: float) -> float:
        """Learn from a step with drafts; return the seconds that it counts as."""
        bias = self._drafting
        known_s = modelled_s * bias.factor if bias.is_known else None
        plausible_s = bias.plausible(modelled_s, took_s)
        bias.observe(modelled_s, took_s)
        return plausible_s if known_s is None else known_s

    def straight(self, modelled_s: float, took_s: float) -> float:
        """Learn from a step in which no draft was found; return the seconds that it counts as.

        Some of these steps evaluate heads and some do not, so each counts as what it took.
        """
        seconds = self._straight.plausible(modelled_s, took_s)
        self._straight.observe(modelled_s, took_s)
        return seconds
