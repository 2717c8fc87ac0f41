"""What a loaded model and its memory allow: the numbers the scheduler works within."""

from dataclasses import dataclass

from engine.plan import WorkerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """The limits of one loaded worker."""

    num_blocks: int
    block_size: int
    max_model_len: int  # at most what the blocks hold
    max_draft_tokens: int  # per row and step; 0: nothing drafts, neither heads nor look-up
    # Positions to reserve beyond the known tokens, for a pass that is launched ahead of its plan.
    num_tokens_ahead: int = 0
    eos_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, info: WorkerInfo) -> "ModelLimits":
        """Return the limits of a loaded worker."""
        return cls(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_model_len=min(info.max_model_len, info.num_blocks * info.block_size),
            max_draft_tokens=info.max_draft_tokens,
            num_tokens_ahead=int(info.runs_ahead),
            eos_token_ids=tuple(info.eos_token_ids),
        )
