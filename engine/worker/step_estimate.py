"""What a decode step is expected to commit, and what it is modelled to cost, kept up to date while
the step runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.worker.row import Alternate, Draft


@dataclass(slots=True)
class StepEstimate:
    """The running account of one step."""

    num_tokens: int  # tokens that will reach the last pass
    expected_tokens: float  # tokens the step is expected to commit
    num_spare: int = 0  # spare slots left, one for each further alternate
    is_ahead: bool = False  # a plain pass is on its way, and lost if anything is drafted
    seconds: float = 0.0  # modelled, of the parts already run; without what prompts add to a step
    last_seconds: float = 0.0  # measured, from the last layer's states to the results

    def add(self, drafts: Iterable[Draft | Alternate]) -> None:
        """Count drafts or alternates that have been made."""
        for draft in drafts:
            self.num_tokens += 1
            self.expected_tokens += draft.survival

    def remove(self, drafts: Iterable[Draft | Alternate]) -> None:
        """No longer count drafts or alternates, which have been given up."""
        for draft in drafts:
            self.num_tokens -= 1
            self.expected_tokens -= draft.survival

    def take_spare(self) -> int:
        """Hand out one of the step's spare slots."""
        self.num_spare -= 1
        return self.num_spare
