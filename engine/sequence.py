"""A request's mutable life in the engine: its tokens and cursors. Holds no blocks, no text.

Between steps `num_computed_tokens == num_tokens - 1` for a decoding sequence: its newest token is
known but not computed.
"""

import time
from collections import Counter
from collections.abc import Sequence as Many
from enum import Enum, auto

from engine.block_hashes import BlockHashes
from engine.plan import RowResult, SequenceStart
from engine.policy_reason import PolicyReport
from engine.request import DraftFigures, ExitRecord, FinishReason, GenerationRequest, TokenLogprobs

OUTGROWN = "the replacement worker's KV cache is too small for this request"


class SequenceStatus(Enum):
    """Where a sequence stands; a preempted one is waiting again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """A request that is being generated."""

    def __init__(
        self, sequence_id: int, request: GenerationRequest, eos_token_ids: Many[int], max_len: int
    ) -> None:
        self.sequence_id = sequence_id
        self.request = request
        self.status = SequenceStatus.WAITING
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # prompt tokens found in the cache when it first ran
        self.block_hashes = BlockHashes(request.cache_salt)
        self.prompt_logprobs: list[TokenLogprobs] = []  # so far; the first is the second token's
        self.embedding: tuple[float, ...] | None = None  # of the prompt, once computed
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.error: str | None = None
        self.queue_s: float | None = None  # how long it waited until it first ran
        self.num_preemptions = 0
        # Whether any output is to be generated at all.
        self.generates = request.sampling.max_tokens > 0
        self._arrived_s = time.monotonic()
        # The numbers of known tokens at which the output ends: as requested, and (`_last_len`)
        # within the KV cache, which a new worker may have shrunk.
        self._asked_len = self.num_prompt_tokens + request.sampling.max_tokens
        self._last_len = min(self._asked_len, max_len)
        # A structure's end cannot be ignored: nothing may follow it.
        is_endless = request.sampling.ignore_eos and request.sampling.structure is None
        eos = () if is_endless else eos_token_ids
        self._eos_ids = frozenset(eos)
        self._stop_ids = frozenset((*eos, *request.sampling.stop_token_ids))
        self._figures = _FigureCounts()

    @property
    def num_tokens(self) -> int:
        """Known tokens, prompt and output."""
        return len(self.token_ids)

    @property
    def num_missing_tokens(self) -> int:
        """Known tokens that are not computed yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_every_position(self) -> bool:
        """Whether every prompt position has to pass the last layer, cached or not."""
        return self._lacks_prompt_logprobs or (
            self.request.pooling == "mean" and self.embedding is None
        )

    @property
    def is_finished(self) -> bool:
        """Whether it has a finish reason."""
        return self.finish_reason is not None

    @property
    def num_tokens_left(self) -> int:
        """Output tokens that may still be generated."""
        return self._last_len - len(self.token_ids)

    def start(self) -> SequenceStart:
        """Return everything a worker needs to go on with this sequence."""
        sampling = self.request.sampling
        wanted = sampling.num_prompt_logprobs if self._lacks_prompt_logprobs else None
        return SequenceStart(
            sequence_id=self.sequence_id,
            token_ids=list(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            sampling=sampling,
            early_exit=self.request.early_exit,
            stop_token_ids=sorted(self._stop_ids),
            last_len=self._last_len,
            num_prompt_logprobs=wanted,
            pooling=self.request.pooling if self.embedding is None else None,
        )

    def commit(self, num_scheduled: int, result: RowResult) -> int:
        """Apply what a step produced: move the cursors, and finish where the output ends.

        Returns:
            How many of the result's tokens became output.
        """
        if result.error is not None:
            reason = FinishReason.DEAD_END if result.is_dead_end else FinishReason.ERROR
            self.finish(reason, error=result.error)
            return 0
        self.num_computed_tokens += num_scheduled
        if result.drafts:
            self._figures.add(result.drafts)
        if result.prompt_logprobs:
            self.prompt_logprobs += result.prompt_logprobs
        if result.embedding is not None:
            self.embedding = tuple(result.embedding)
        kept = 0
        for token_id in result.token_ids:
            self.token_ids.append(token_id)
            kept += 1
            if token_id in self._stop_ids or len(self.token_ids) >= self._last_len:
                self._finish_after(token_id)
                if self.finish_reason is not None:
                    break
        if kept:
            self.num_computed_tokens = len(self.token_ids) - 1
        elif self.num_computed_tokens == len(self.token_ids):
            self.finish(FinishReason.LENGTH)  # nothing was to be generated
        return kept

    def finish(
        self,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        *,
        error: str | None = None,
    ) -> None:
        """End the sequence; if this is called again, the last reason stands."""
        self.status = SequenceStatus.FINISHED
        self.finish_reason, self.stop_reason, self.error = reason, stop_reason, error

    def drop_tokens_after(self, num_output_tokens: int) -> None:
        """Forget output beyond a stop string's last token."""
        del self.token_ids[self.num_prompt_tokens + num_output_tokens :]

    def admit(self, num_cached_tokens: int) -> bool:
        """Move from waiting to running; the KV of the first tokens was found in the cache.

        Returns:
            Whether the sequence runs for the first time.
        """
        self.status = SequenceStatus.RUNNING
        self.num_computed_tokens = num_cached_tokens
        if self.queue_s is not None:
            return False
        self.queue_s = time.monotonic() - self._arrived_s
        self.num_cached_tokens = num_cached_tokens
        return True

    def preempt(self) -> None:
        """Move back to waiting; all known tokens have to be computed again."""
        self.status = SequenceStatus.WAITING
        self.num_preemptions += 1
        self.num_computed_tokens = 0
        if self._lacks_prompt_logprobs:
            self.prompt_logprobs.clear()

    def adapt(self, max_len: int) -> bool:
        """Limit the sequence to `max_len` tokens; if that cuts its output short, it ends in error.

        Returns:
            Whether it can go on at all.
        """
        self._last_len = min(self._asked_len, max_len)
        return min(self.num_tokens + 1, self._asked_len) <= max_len

    def figures(self, policy: PolicyReport) -> DraftFigures:
        """Return what drafting did for this request, and what the policy does for it now."""
        return self._figures.snapshot(policy)

    def check(self) -> None:
        """Assert the cursors' invariants."""
        assert 0 <= self.num_computed_tokens < self.num_tokens, "cursor beyond the known tokens"

    @property
    def _lacks_prompt_logprobs(self) -> bool:
        if self.request.sampling.num_prompt_logprobs is None:
            return False
        return len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    def _finish_after(self, token_id: int) -> None:
        num_tokens = len(self.token_ids)
        num_output = num_tokens - self.num_prompt_tokens
        if token_id in self._stop_ids and self._may_stop_at(token_id, num_output):
            self.finish(FinishReason.STOP, None if token_id in self._eos_ids else token_id)
        elif num_tokens >= self._asked_len:
            self.finish(FinishReason.LENGTH)
        elif num_tokens >= self._last_len:
            self.finish(FinishReason.ERROR, error=OUTGROWN)

    def _may_stop_at(self, token_id: int, num_output: int) -> bool:
        """Whether the output is long enough to stop, or its structure is complete."""
        sampling = self.request.sampling
        is_complete = sampling.structure is not None and token_id in self._eos_ids
        return num_output >= sampling.min_tokens or is_complete


class _FigureCounts:
    """Running counts behind `DraftFigures`."""

    def __init__(self) -> None:
        self._histogram: list[int] = []
        self._drafted: Counter[int] = Counter()
        self._accepted: Counter[int] = Counter()

    def add(self, drafts: Many[ExitRecord]) -> None:
        """Count the drafts of one step."""
        accepted = sum(draft.accepted for draft in drafts)
        self._histogram += [0] * (accepted + 1 - len(self._histogram))
        self._histogram[accepted] += 1
        self._drafted.update(draft.exit_layer for draft in drafts)
        self._accepted.update(draft.exit_layer for draft in drafts if draft.accepted)

    def snapshot(self, policy: PolicyReport) -> DraftFigures:
        return DraftFigures(
            num_steps=sum(self._histogram),
            num_draft_tokens=sum(self._drafted.values()),
            num_accepted_tokens=sum(self._accepted.values()),
            acceptance_histogram=tuple(self._histogram),
            accepted_by_layer=dict(sorted(self._accepted.items())),
            drafted_by_layer=dict(sorted(self._drafted.items())),
            policy=policy,
        )
