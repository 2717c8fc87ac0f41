"""What the exit policy is doing and why, as the worker reports it with every step's result."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class PolicyReason(StrEnum):
    """Why drafts are made at present, or are not."""

    DRAFTING = "drafting"
    PROBING = "probing"
    POOR_ACCEPTANCE = "poor_acceptance"
    COSTS_MORE = "costs_more_than_it_brings"
    FIXED_THRESHOLD = "fixed_threshold"
    OFF_BY_REQUEST = "off_by_request"
    OFF = "off"

    @property
    def text(self) -> str:
        """A description of the reason for people."""
        return _TEXTS[self]


_TEXTS = {
    PolicyReason.DRAFTING: "drafts are made wherever they are expected to pay",
    PolicyReason.PROBING: "drafting has just begun or resumed, to see whether it pays",
    PolicyReason.POOR_ACCEPTANCE: (
        "paused: fewer drafts were accepted than expected, too few to pay"
    ),
    PolicyReason.COSTS_MORE: "paused: accepted drafts save less than drafting costs",
    PolicyReason.FIXED_THRESHOLD: "a fixed threshold decides instead of the policy",
    PolicyReason.OFF_BY_REQUEST: "the request asked for no drafts",
    PolicyReason.OFF: "nothing can draft: no exit heads and no look-ups, or they are switched off",
}


@dataclass(slots=True)  # made for every step: frozen or kw_only would take twice as long
class PolicyReport:
    """The policy's state after a step."""

    reason: PolicyReason = PolicyReason.OFF
    speedup: float = 1.0  # modelled gain of recent steps over plain decoding
    pause: int = 0  # steps until the policy tries again
    looks: tuple[float, ...] = ()  # expected tokens gained by a look at a row, by exit

    @property
    def is_drafting(self) -> bool:
        """Whether drafts may be made at present."""
        return self.reason in (
            PolicyReason.DRAFTING,
            PolicyReason.PROBING,
            PolicyReason.FIXED_THRESHOLD,
        )

    @property
    def text(self) -> str:
        """The whole report as a text for people."""
        return "; ".join((self.reason.text, *self._figures))

    @property
    def _figures(self) -> Iterator[str]:
        if self.pause:
            yield f"tries again in {self.pause} steps"
        if self.reason in (PolicyReason.DRAFTING, PolicyReason.PROBING):
            yield f"{self.speedup:.2f}x plain over recent steps"
        if self.looks:
            worths = ", ".join(f"{worth:.2f}" for worth in self.looks)
            yield f"evaluating an exit gains {worths} tokens"
