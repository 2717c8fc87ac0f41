"""What a loaded model and its memory allow: the numbers the scheduler works within."""

from dataclasses import dataclass

from engine.plan import WorkerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What the worker and the model allow."""

    num_blocks: int
    block_size: int
    max_model_len: int  # never more than the blocks hold
    max_draft_tokens: int  # 0: no exit heads
    num_tokens_ahead: int = 0  # positions to have room for, beyond those that a step is to compute
    eos_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, info: WorkerInfo) -> "ModelLimits":
        """The limits of a loaded worker."""
        return cls(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_model_len=min(info.max_model_len, info.num_blocks * info.block_size),
            max_draft_tokens=info.max_draft_tokens,
            num_tokens_ahead=int(info.runs_ahead),
            eos_token_ids=tuple(info.eos_token_ids),
        )
