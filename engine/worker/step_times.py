"""What whole steps take, in batches of about one size: plain ones, those with drafts, and those in
which drafts were thought of and none was found. Knows seconds only.
"""

from engine.worker.measured_bias import MeasuredBias


class StepTimes:
    """Corrects what the parts of steps are said to take by what the steps took."""

    def __init__(self, like: "StepTimes | None" = None) -> None:
        """Args:
        like: Of batches of another size: what it knows is begun with.
        """
        self._plain: MeasuredBias = MeasuredBias(None if like is None else like._plain)
        self._drafting: MeasuredBias = MeasuredBias(None if like is None else like._drafting)
        self._straight: MeasuredBias = MeasuredBias(None if like is None else like._straight)

    @property
    def has_seen_plain(self) -> bool:
        """Whether plain steps of this size were measured at all."""
        return self._plain.is_begun

    @property
    def knows_drafting(self) -> bool:
        """Whether one more step with drafts changes little."""
        return self._drafting.is_known

    def plain(self, modelled_s: float) -> float:
        """What a plain step takes."""
        return modelled_s * self._plain.factor

    def note_plain(self, modelled_s: float, took_s: float) -> None:
        """Learn from a plain step."""
        self._plain.observe(modelled_s, took_s)

    def drafting(self, modelled_s: float, took_s: float) -> float:
        """What a step with drafts is to count as; learn from it."""
        bias = self._drafting
        known_s = modelled_s * bias.factor if bias.is_known else None
        plausible_s = bias.plausible(modelled_s, took_s)
        bias.observe(modelled_s, took_s)
        return plausible_s if known_s is None else known_s

    def straight(self, modelled_s: float, took_s: float) -> float:
        """The same of one in which drafts were thought of and none was found. Some of these begin
        to look and some do not, so that each counts as what it took.
        """
        seconds = self._straight.plausible(modelled_s, took_s)
        self._straight.observe(modelled_s, took_s)
        return seconds
