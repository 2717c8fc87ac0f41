"""A worker without a model: a token is a hash of those before it, read from a simulated KV cache.

So a request has one right output under any schedule. A block given to two sequences, a position
that was never computed, or a rejected draft that is read as if accepted shows as a wrong token or
fails an assertion. Like keys and values, a slot depends on the whole context it was computed in, so
a block shared with a sequence of other preceding tokens shows as well.
"""

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal
from zlib import crc32

from engine.plain_texts import TokenSpeller
from engine.plan import RowPlan, RowResult, SequenceStart, StepPlan, StepResult, WorkerInfo
from engine.request import (
    EarlyExitOptions,
    ExitRecord,
    GenerationRequest,
    SamplingParams,
    Structure,
    TokenLogprobs,
)

EOS_ID = 0
POISON_ID = 1  # a prompt that begins with it cannot be computed
VOCAB_SIZE = 40
KILLER_ID = VOCAB_SIZE - 1  # a prompt that begins with it kills the worker
ILL_SEED = 666  # a request with this seed fails, and leaves garbage in its slots


class Letters(TokenSpeller):
    """A tokenizer whose tokens are letters, several tokens per letter; EOS_ID is special."""

    strips_first_space = False

    def is_special(self, token_id: int) -> bool:
        return token_id == EOS_ID

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([ord("a") + token_id % 5])

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode all tokens at once."""
        return b"".join(self.token_bytes(i) for i in token_ids if i != EOS_ID).decode()


def next_token(context: Sequence[int], seed: int = 0, forbidden: Collection[int] = ()) -> int:
    """Return the token that the fake model generates after `context`."""
    digest = crc32(bytes(context), seed & 0xFFFFFFFF)
    return next(
        token
        for token in ((digest + offset) % VOCAB_SIZE for offset in range(VOCAB_SIZE))
        if token not in forbidden
    )


def make_request(
    number: int,
    num_prompt: int = 5,
    *,
    early_exit: EarlyExitOptions | None = None,
    pooling: Literal["mean", "last"] | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """Make a request that differs from those with other numbers; 20 tokens by default."""
    return GenerationRequest(
        request_id=f"request-{number}",
        prompt_token_ids=tuple(2 + (number * 7 + i) % 30 for i in range(num_prompt)),
        sampling=SamplingParams(**{"seed": number, "max_tokens": 20} | sampling),
        early_exit=early_exit or EarlyExitOptions(),
        pooling=pooling,
    )


def expected_output(request: GenerationRequest) -> tuple[int, ...]:
    """Return the output tokens that a request must get, stop strings aside."""
    sampling = request.sampling
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS_ID})
    output: list[int] = []
    while len(output) < sampling.max_tokens and not (output and output[-1] in stops):
        forbidden = stops if len(output) < sampling.min_tokens else ()
        context = (*request.prompt_token_ids, *output)
        output.append(next_token(context, sampling.seed, forbidden))
    return tuple(output)


def expected_prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprobs, ...]:
    """Return the prompt log-probabilities that a request must get."""
    prompt = request.prompt_token_ids
    if request.sampling.num_prompt_logprobs is None:
        return ()
    return tuple(_score(prompt[:count], prompt[count]) for count in range(1, len(prompt)))


def expected_embedding(request: GenerationRequest) -> tuple[float, ...] | None:
    """Return the embedding that a request with pooling must get."""
    prompt = request.prompt_token_ids
    hashes = [_context_hash(prompt[:count]) for count in range(1, len(prompt) + 1)]
    if request.pooling == "mean":
        return (sum(hashes) / len(hashes),)
    return (float(hashes[-1]),) if request.pooling == "last" else None


def _score(context: Sequence[int], token_id: int) -> TokenLogprobs:
    logprob = -crc32(token_id.to_bytes(2), _context_hash(context)) / 2**32
    return TokenLogprobs(token_id=token_id, logprob=logprob)


def _context_hash(context: Sequence[int]) -> int:
    value = 0
    for token_id in context:
        value = crc32(token_id.to_bytes(2), value)
    return value


class WorkerCrash(Exception):
    """The fake worker has died and forgotten its state."""


class FakeWorker:
    """An `engine.offline.SynchronousWorker`; `engine.inline_worker.InlineWorker` wraps it."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_model_len: int = 64,
        max_draft_tokens: int = 3,
        acceptance: float = 0.5,
        step_time_s: float = 0.0,
        fails_at_step: int | None = None,
        runs_ahead: bool = False,
    ) -> None:
        self.info = WorkerInfo(
            num_blocks=num_blocks,
            block_size=block_size,
            vocab_size=VOCAB_SIZE,
            num_layers=4,
            hidden_size=1,
            max_model_len=max_model_len,
            eos_token_ids=[EOS_ID],
            dtype="float32",
            numbers="float32",
            device="cpu",
            exit_layers=[1, 2],
            max_draft_tokens=max_draft_tokens,
            backend="fake",
            runs_ahead=runs_ahead,
        )
        self.plans: list[StepPlan] = []
        self.acceptance = acceptance
        self.step_time_s = step_time_s
        self._fails_at_step = fails_at_step
        self._random = random.Random(0)
        self.forget()

    def forget(self) -> None:
        """Forget all state, as a restart does."""
        self.starts: dict[int, SequenceStart] = {}
        self._tokens: dict[int, list[int]] = {}
        # For pooling: sums of the hashes of computed prompt tokens, by sequence.
        self._sums: dict[int, int] = {}
        num_slots = self.info.num_blocks * self.info.block_size
        # By slot: (position, token id, hash of all tokens up to it).
        self._cache: list[tuple[int, int, int]] = [(-1, -1, -1)] * num_slots

    def resize(self, num_blocks: int) -> None:
        """Restart with another amount of memory."""
        self.info = replace(self.info, num_blocks=num_blocks)
        self.forget()

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousWorker.execute`."""
        if self.step_time_s:  # even sleeping for 0 s gives the CPU away
            time.sleep(self.step_time_s)
        self.plans.append(plan)
        if plan.step_id == self._fails_at_step:
            raise RuntimeError("this step was told to fail")
        for sequence_id in plan.ended:
            self.starts.pop(sequence_id, None)
            self._tokens.pop(sequence_id, None)
            self._sums.pop(sequence_id, None)
        for start in plan.started:
            assert start.sequence_id not in self.starts, "started twice"
            self.starts[start.sequence_id] = start
            self._tokens[start.sequence_id] = list(start.token_ids)
        if any(self._tokens[row.sequence_id][0] == KILLER_ID for row in plan.rows):
            self.forget()
            raise WorkerCrash
        return StepResult(
            step_id=plan.step_id, rows=[self._run(row) for row in plan.rows], duration_s=0.001
        )

    def prepare(self, structure: Structure) -> None:
        """Accept any structure."""

    def rest(self, *, is_idle: bool) -> bool:
        """Return that there is nothing to do."""
        return False

    def _run(self, row: RowPlan) -> RowResult:
        start, known = self.starts[row.sequence_id], self._tokens[row.sequence_id]
        end = row.start + row.num_tokens
        room = len(row.block_table) * self.info.block_size
        assert row.num_tokens > 0
        assert room >= end + row.max_draft_tokens, "the block table does not cover the row"
        assert end <= len(known), "the worker does not know these tokens"
        assert not row.is_decoding or end == len(known), "the newest token is not computed"
        if known[0] == POISON_ID:
            return RowResult(sequence_id=row.sequence_id, token_ids=[], error="poisoned")
        if start.sampling.seed == ILL_SEED:
            for position in range(row.start, end):
                self._cache[self._slot(row, position)] = (position, known[position], -1)
            return RowResult(sequence_id=row.sequence_id, token_ids=[], error="not a number")
        for position in range(row.start, end):
            self._write(row, position, known[position])
        prompt_logprobs, embedding = self._read_prompt(row, start, known)
        if not row.is_decoding:
            return RowResult(
                sequence_id=row.sequence_id,
                token_ids=[],
                prompt_logprobs=tuple(prompt_logprobs),
                embedding=embedding,
            )
        drafts = self._draft(row, start, end) if start.early_exit.enabled else []
        targets = [self._choose(row, start, end + i) for i in range(len(drafts) + 1)]
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == targets[accepted]:
            accepted += 1
        new = targets[: accepted + 1]
        known.extend(new)
        if self.info.runs_ahead and end + accepted < room:
            # A pass that ran ahead writes a slot that must not be read: no token has this id.
            self._cache[self._slot(row, end + accepted)] = (end + accepted, VOCAB_SIZE, -1)
        return RowResult(
            sequence_id=row.sequence_id,
            token_ids=new,
            prompt_logprobs=tuple(prompt_logprobs),
            embedding=embedding,
            logprobs=()
            if start.sampling.num_logprobs is None
            else tuple(TokenLogprobs(token_id=token, logprob=-token / 10) for token in new),
            drafts=tuple(
                ExitRecord(
                    token_id=token, exit_layer=1 + i % 2, confidence=0.5, accepted=i < accepted
                )
                for i, token in enumerate(drafts)
            ),
        )

    def _read_prompt(
        self, row: RowPlan, start: SequenceStart, known: Sequence[int]
    ) -> tuple[list[TokenLogprobs], list[float] | None]:
        """Return the log-probabilities and the embedding due for the row's prompt tokens."""
        if start.num_prompt_logprobs is None and start.pooling is None:
            return [], None
        num_prompt = start.num_prompt_tokens
        positions = range(row.start, min(row.start + row.num_tokens, num_prompt))
        contexts = [self._context(row, position + 1) for position in positions]
        logprobs = [
            _score(context, known[len(context)])
            for context in contexts
            if start.num_prompt_logprobs is not None and len(context) < num_prompt
        ]
        hashes = [_context_hash(context) for context in contexts]
        total = self._sums.get(row.sequence_id, 0) + sum(hashes)
        self._sums[row.sequence_id] = total
        if start.pooling is None or not contexts or len(contexts[-1]) < num_prompt:
            return logprobs, None
        is_mean = start.pooling == "mean"
        return logprobs, [total / num_prompt if is_mean else float(hashes[-1])]

    def _draft(self, row: RowPlan, start: SequenceStart, end: int) -> list[int]:
        """Write a random number of drafts, right or wrong, at the positions from `end`."""
        drafts: list[int] = []
        for position in range(end, end + self._random.randint(0, row.max_draft_tokens)):
            token = self._choose(row, start, position)
            if self._random.random() > self.acceptance:
                token = (token + 1) % VOCAB_SIZE
            self._write(row, position, token)
            drafts.append(token)
        return drafts

    def _slot(self, row: RowPlan, position: int) -> int:
        size = self.info.block_size
        return row.block_table[position // size] * size + position % size

    def _write(self, row: RowPlan, position: int, token_id: int) -> None:
        past = self._cache[self._slot(row, position - 1)][2] if position else 0
        context_hash = crc32(token_id.to_bytes(2), past)
        self._cache[self._slot(row, position)] = (position, token_id, context_hash)

    def _choose(self, row: RowPlan, start: SequenceStart, num_context: int) -> int:
        """Return the token after the first `num_context` tokens in the cache."""
        context = self._context(row, num_context)
        is_too_short = num_context - start.num_prompt_tokens < start.sampling.min_tokens
        forbidden = start.stop_token_ids if is_too_short else ()
        return self.next_token(context, start.sampling.seed, forbidden)

    def next_token(self, context: Sequence[int], seed: int, forbidden: Collection[int]) -> int:
        """Return the token that this model generates after `context`."""
        return next_token(context, seed, forbidden)

    def _context(self, row: RowPlan, num_context: int) -> list[int]:
        """Return the first `num_context` tokens in the cache, after checking them."""
        context: list[int] = []
        context_hash = 0
        for position in range(num_context):
            written, token_id, written_hash = self._cache[self._slot(row, position)]
            assert written == position, "a slot holds another position"
            context_hash = crc32(token_id.to_bytes(2), context_hash)
            assert written_hash == context_hash, "a slot was computed in another context"
            context.append(token_id)
        return context
