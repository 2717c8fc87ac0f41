"""The estimate of what a decode step commits and costs, kept up to date while the step runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.worker.row import Alternate, Draft


@dataclass(slots=True)
class StepEstimate:
    """The running estimate of one step."""

    num_tokens: int  # tokens that will reach the last pass
    expected_tokens: float  # tokens the step is expected to commit
    num_spare: int = 0  # spare slots left for further alternates
    is_ahead: bool = False  # a plain pass was launched ahead; it is lost if anything is drafted
    seconds: float = 0.0  # modelled, of the parts already run, without what prompts add
    last_seconds: float = 0.0  # measured, from the last layer's states to the results

    def add(self, drafts: Iterable[Draft | Alternate]) -> None:
        """Count drafts or alternates that have been made."""
        for draft in drafts:
            self.num_tokens += 1
            self.expected_tokens += draft.survival

    def remove(self, drafts: Iterable[Draft | Alternate]) -> None:
        """Stop counting drafts or alternates that have been dropped."""
        for draft in drafts:
            self.num_tokens -= 1
            self.expected_tokens -= draft.survival

    def take_spare(self) -> int:
        """Hand out one of the step's spare slots."""
        self.num_spare -= 1
        return self.num_spare
