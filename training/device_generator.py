"""Generates very many texts at once on a GPU.

All state that a text needs to go on stays on the device; only every few steps does the host look
which texts have ended and start new ones. With the offline engine, Python's work per token would
take most of the time. The tokens are those that it would choose: the same logits and the same
noise. There are no drafts, no prefix cache and no preemption: a text gets all blocks that it can
need when it begins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.noise import noise_keys
from engine.model.ops.interface import TokenBatch
from engine.worker.kv_cache import allocate_cache, block_size_bytes
from engine.worker.upload import upload
from training.questions import Ask

_BLOCK_SIZE = 16
_STEPS_PER_LOOK = 8
_PREFILL_TOKENS = 8192  # per forward pass, unless a single prompt is longer

NextAsk = Callable[[], Ask | None]


@dataclass(frozen=True, slots=True)
class DeviceAnswer:
    """The finished answer to one question."""

    ask: Ask
    token_ids: list[int]
    is_over: bool  # it ended with an end-of-sequence token, not at its length limit


@dataclass(slots=True)
class _Place:
    """What occupies one of the rows on the device."""

    ask: Ask
    blocks: list[int]


class DeviceGenerator:
    """Answers questions with a loaded model, many rows at once."""

    def __init__(self, decoder: Decoder, *, max_rows: int, max_len: int, max_bytes: int) -> None:
        """
        Args:
            max_rows: Most texts at once.
            max_len: Most tokens of a text, prompt included.
            max_bytes: Memory for keys and values.

        Raises:
            ValueError: if the longest text does not fit into `max_bytes`.
        """
        spec, ops = decoder.spec, decoder.ops
        device = ops.device
        self._decoder = decoder
        self._device = device
        per_row = self._blocks_for(max_len)
        per_block = block_size_bytes(spec, _BLOCK_SIZE, ops.dtype)
        num_blocks = min(max_bytes // per_block, max_rows * per_row)
        if num_blocks < per_row:
            raise ValueError(
                f"--memory-gib: the longest text needs {per_row * per_block / 2**30:.1f} GiB of "
                f"keys and values, {max_bytes / 2**30:.1f} GiB are allowed"
            )
        self._cache = allocate_cache(spec, num_blocks, _BLOCK_SIZE, dtype=ops.dtype, device=device)
        self._free_blocks = list(range(num_blocks))
        self._free_rows = list(range(max_rows))
        self._taken: dict[int, _Place] = {}
        self._eos = torch.tensor(list(spec.eos_token_ids), device=device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self._tables = zeros(max_rows, per_row, dtype=torch.int32)
        self._newest = zeros(max_rows)
        self._position = zeros(max_rows)  # position of the newest token
        self._num_prompt = zeros(max_rows)
        self._limit = zeros(max_rows)  # most output tokens
        self._length = zeros(max_rows)  # length of the output once it has ended; 0: still running
        self._inverse = zeros(max_rows, dtype=torch.float32)
        self._seed = zeros(max_rows)
        self._output = zeros(max_rows, max_len + 1)

    @torch.inference_mode()
    def answers(self, next_ask: NextAsk) -> Iterator[list[DeviceAnswer]]:
        """Answer all questions; yield the answers that have ended each time the host looks.

        Args:
            next_ask: Called whenever there may be room; None: nothing for now.

        Raises:
            ValueError: if the model's logits are not numbers.
        """
        held: Ask | None = None  # taken from `next_ask`, but without room yet
        while True:
            started: list[int] = []
            while self._free_rows and (held is not None or (held := next_ask()) is not None):
                row = self._begin(held)
                if row is None:
                    break
                held = None
                started.append(row)
            for group in self._prefill_groups(started):
                self._prefill(group)
            if not self._taken:
                return
            rows = upload(list(self._taken), torch.int64, self._device)
            for _ in range(_STEPS_PER_LOOK):
                self._step(rows)
            ended = self._collect(rows)
            if ended:
                yield ended

    @property
    def num_running(self) -> int:
        """The number of texts that have begun and not ended."""
        return len(self._taken)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // _BLOCK_SIZE)

    def _begin(self, ask: Ask) -> int | None:
        """Give a question a row and blocks; return the row, or None if there are too few blocks."""
        count = self._blocks_for(len(ask.question.prompt_ids) + ask.max_new_tokens)
        if count > len(self._free_blocks):
            return None
        row = self._free_rows.pop()
        blocks = [self._free_blocks.pop() for _ in range(count)]
        self._taken[row] = _Place(ask, blocks)
        return row

    def _prefill_groups(self, rows: Sequence[int]) -> Iterator[list[int]]:
        group: list[int] = []
        size = 0
        for row in rows:
            length = len(self._taken[row].ask.question.prompt_ids)
            if group and size + length > _PREFILL_TOKENS:
                yield group
                group, size = [], 0
            group.append(row)
            size += length
        if group:
            yield group

    def _prefill(self, rows: Sequence[int]) -> None:
        """Compute whole prompts and choose the first token of each answer."""
        places = [self._taken[row] for row in rows]
        prompts = [place.ask.question.prompt_ids for place in places]
        lengths = upload([len(prompt) for prompt in prompts], torch.int64, self._device)
        at = upload(rows, torch.int64, self._device)
        width = self._tables.shape[1]
        tables = [place.blocks + [0] * (width - len(place.blocks)) for place in places]
        self._tables[at] = upload(tables, torch.int32, self._device)
        self._num_prompt[at] = lengths
        self._position[at] = lengths - 1
        self._length[at] = 0
        limits = [place.ask.max_new_tokens for place in places]
        self._limit[at] = upload(limits, torch.int64, self._device)
        temperatures = [place.ask.temperature for place in places]
        inverse = [1.0 / each if each else 0.0 for each in temperatures]
        self._inverse[at] = upload(inverse, torch.float32, self._device)
        self._seed[at] = upload([place.ask.seed for place in places], torch.int64, self._device)
        token_ids = upload([i for prompt in prompts for i in prompt], torch.int32, self._device)
        ends = lengths.cumsum(0)
        row_of = torch.repeat_interleave(at, lengths, output_size=len(token_ids))
        first_of = torch.repeat_interleave(ends - lengths, lengths, output_size=len(token_ids))
        positions = torch.arange(len(token_ids), device=self._device) - first_of
        hidden = self._run(token_ids, row_of, positions)
        self._choose(hidden[ends - 1], at)

    def _step(self, rows: Tensor) -> None:
        """Generate one more token for each of the rows."""
        hidden = self._run(self._newest[rows].int(), rows, self._position[rows])
        self._choose(hidden, rows)

    def _run(self, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        blocks = self._tables[rows, positions // _BLOCK_SIZE]
        batch = TokenBatch(
            positions=positions.int(),
            slots=(blocks * _BLOCK_SIZE + positions % _BLOCK_SIZE).int(),
            rows=rows.int(),
            block_tables=self._tables,
            block_size=_BLOCK_SIZE,
        )
        whole = Segment(0, self._decoder.spec.num_layers)
        return self._decoder.run(self._decoder.embed(token_ids), whole, self._cache, batch)

    def _choose(self, hidden: Tensor, rows: Tensor) -> None:
        """Choose each row's next token from the last hidden states [S, E] of its newest one.

        The position of a row that has ended stays as it is until the host looks.
        """
        position = self._position[rows] + 1
        logits = self._decoder.logits(hidden)
        keys = noise_keys(self._seed[rows], position)
        chosen = self._decoder.ops.sample(logits, self._inverse[rows], keys)
        count = position - self._num_prompt[rows] + 1  # output tokens, this one included
        length = self._length[rows]
        is_running = length == 0
        self._output[rows, count - 1] = chosen
        self._newest[rows] = chosen.clamp_min(0)  # NaN logits choose -1
        self._position[rows] = torch.where(is_running, position, position - 1)
        is_end = torch.isin(chosen, self._eos) | (count >= self._limit[rows]) | (chosen < 0)
        self._length[rows] = torch.where(is_end & is_running, count, length)

    def _collect(self, rows: Tensor) -> list[DeviceAnswer]:
        """Return the texts that have ended, and free their rows and blocks."""
        lengths = self._length[rows].tolist()
        ended = [(row, n) for row, n in zip(list(self._taken), lengths, strict=True) if n]
        if not ended:
            return []
        outputs = self._output[upload([row for row, _ in ended], torch.int64, self._device)]
        answers = []
        eos = set(self._decoder.spec.eos_token_ids)
        for (row, length), output in zip(ended, outputs.cpu().numpy(), strict=True):
            place = self._taken.pop(row)
            self._free_rows.append(row)
            self._free_blocks += place.blocks
            ids = output[:length].tolist()
            if ids[-1] < 0:
                raise ValueError("the model's logits are not numbers")
            answers.append(DeviceAnswer(place.ask, ids, is_over=ids[-1] in eos))
        return answers
