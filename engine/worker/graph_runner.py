"""Runs the parts of a pass as CUDA graphs, captured once per number of tokens and then replayed.

Launching a layer's kernels one by one takes the host longer than a GPU needs to run them. A graph
launches all kernels of a part at once, over fixed buffers: tokens are copied into the buffers,
padded to the next captured number, and the graph is replayed. Padding tokens write their keys and
values to a slot that no sequence has. A step that decodes without drafts is one graph from token
ids to logits, because a GPU idles while the host prepares its next call.

Knows the decoder's parts, but no plans and no drafts. How a graph is captured is passed in, so that
the rest can be tested on a CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.exit_head import ExitHeads
from engine.model.ops.interface import LayerCache, TokenBatch
from engine.worker.capture import CAPTURED_COUNTS, Capture, Replay, fitting
from engine.worker.head_graph import HeadGraph
from engine.worker.newest_buffer import NewestBuffer
from engine.worker.segment_runner import EagerRunner, NewestTokens

_FIRST_WIDTH = 1024  # positions covered by the narrowest captured block tables
_WIDTH_STEP = 4  # factor from each captured width of block tables to the next
_ALIGNED = 4  # least size of a buffer's rows in int32, to be as aligned as whole buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The largest batch that graphs are captured for."""

    max_rows: int
    max_positions: int  # positions per row, drafts included
    block_size: int
    spare_slot: int  # slot of the KV pool that no sequence has
    token_counts: Sequence[int] = CAPTURED_COUNTS

    @property
    def row_counts(self) -> list[int]:
        """The numbers of rows for which whole passes of one token per row are captured."""
        most = fitting(self.token_counts, self.max_rows) or self.token_counts[-1]
        return [count for count in self.token_counts if count <= most]

    @property
    def widths(self) -> list[int]:
        """The captured widths of block tables, in blocks.

        Attention launches programs for all blocks of a table, so short rows want narrow tables.
        """
        widths, positions = [], _FIRST_WIDTH
        while 3 * positions < 2 * self.max_positions:  # beyond this, the widest does as well
            widths.append(-(-positions // self.block_size))
            positions *= _WIDTH_STEP
        return [*widths, -(-self.max_positions // self.block_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Views of the buffers for one number of tokens, kept because making them takes time."""

    count: int  # tokens of the graphs to replay
    hidden: Tensor
    result: Tensor
    logits: Tensor
    places: Tensor
    rest: Tensor  # places of the padding tokens
    padding: Tensor

    @property
    def is_padded(self) -> bool:
        """Whether the graphs have more tokens than the call."""
        return self.rest.shape[1] > 0


class GraphRunner:
    """Implements `SegmentRunner`; a call that is too large for any graph runs eagerly."""

    def __init__(
        self,
        decoder: Decoder,
        segments: Sequence[Segment],
        cache: Sequence[LayerCache],
        limits: BatchLimits,
        capture: Capture,
    ) -> None:
        """
        Args:
            capture: Runs a part over the buffers, and returns what runs it again.
        """
        self._decoder = decoder
        self._segments = segments
        self._cache = cache
        self._eager = EagerRunner(decoder, segments, cache)
        self._limits = limits
        self._widths = limits.widths
        self._capture = capture
        self._replays: dict[tuple[str, int, int], Replay] = {}
        ops, most = decoder.ops, limits.token_counts[-1]
        device = ops.device
        self._hidden = torch.zeros(most, decoder.spec.hidden_size, dtype=ops.dtype, device=device)
        self._result = torch.zeros_like(self._hidden)
        self._logits = torch.zeros(most, decoder.spec.vocab_size, device=device)
        # Positions, slots and rows; a padding token is row 0's first, with the spare slot.
        self._padding = torch.zeros(3, most, dtype=torch.int32, device=device)
        self._padding[1] = limits.spare_slot
        self._places = self._padding.clone()
        self._newest = {
            count: NewestBuffer(max(count, _ALIGNED), limits.spare_slot, device)
            for count in limits.row_counts
        }
        self._row_counts = list(self._newest)
        self._passed: Tensor | None = None  # states whose logits are already computed
        # Every token may be a row of its own, as when costs are measured.
        shape = (max(limits.max_rows, most), self._widths[-1])
        self._tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self._rooms: dict[int, _Room | None] = {}  # by number of tokens
        self._tables_of: Tensor | None = None  # the block tables copied to `_tables`
        self._places_of: TokenBatch | None = None  # the batch copied to `_places`

    @property
    def sizes(self) -> str:
        """The sizes that graphs are captured for, as text: what is larger costs more."""
        limits = self._limits
        return f"{list(limits.token_counts)}, {limits.row_counts}, {limits.widths}"

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture every part in every size, so that no step has to wait for it."""
        for count in reversed(self._limits.token_counts):  # largest first: its memory serves all
            for index, width in product(range(len(self._segments)), self._widths):
                if self._segments[index].num_layers:
                    self._segment(index, count, width)
            self._last(count)
        for count, width in product(reversed(self._row_counts), self._widths):
            self._pass(count, width)

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`."""
        num_tokens, num_blocks = len(tokens.token_ids), tokens.block_tables.shape[1]
        room, width = self._room(num_tokens), fitting(self._widths, num_blocks)
        if room is None or num_tokens > self._row_counts[-1] or width is None:
            return None
        replay = self._pass(room.count, width)
        self._newest[room.count].send(tokens.token_ids, tokens.places)
        self._load_tables(tokens.block_tables)
        replay()
        self._passed = room.result
        return self._passed

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `SegmentRunner.embed`; a single launch needs no graph."""
        return self._decoder.embed(token_ids)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """See `SegmentRunner.run`."""
        num_rows, num_blocks = batch.block_tables.shape
        self._passed = None
        room, width = self._room(hidden.shape[0]), fitting(self._widths, num_blocks)
        is_empty = not self._segments[index].num_layers
        if is_empty or room is None or width is None or num_rows > self._tables.shape[0]:
            return self._eager.run(index, hidden, batch)
        replay = self._segment(index, room.count, width)
        room.hidden.copy_(hidden)
        if batch is not self._places_of:
            torch.stack((batch.positions, batch.slots, batch.rows), out=room.places)  # one launch
            if room.is_padded:
                room.rest.copy_(room.padding)
            self._places_of = batch
        self._load_tables(batch.block_tables)
        replay()
        # A copy: tokens may wait at the boundary while the same graph runs again.
        return room.result.clone()

    def logits(self, hidden: Tensor) -> Tensor:
        """See `SegmentRunner.logits`."""
        room = self._room(hidden.shape[0])
        if room is None:
            return self._eager.logits(hidden)
        if hidden is not self._passed:
            self._passed = None
            replay = self._last(room.count)
            room.hidden.copy_(hidden)
            replay()
        return room.logits

    def heads(self, heads: ExitHeads) -> ExitHeads:
        """Return the same exit heads, captured as graphs."""
        counts = self._limits.token_counts
        graphs = [HeadGraph(h, self._hidden[:1], self._capture, counts) for h in heads.heads]
        for graph in graphs:
            graph.prepare()
        return replace(heads, heads=graphs)

    def _room(self, num_tokens: int) -> _Room | None:
        """Return the views for a number of tokens; None if it is too large for any graph."""
        if num_tokens not in self._rooms:
            self._rooms[num_tokens] = self._make_room(num_tokens)
        return self._rooms[num_tokens]

    def _make_room(self, num_tokens: int) -> _Room | None:
        count = fitting(self._limits.token_counts, num_tokens)
        if count is None:
            return None
        return _Room(
            count=count,
            hidden=self._hidden[:num_tokens],
            result=self._result[:num_tokens],
            logits=self._logits[:num_tokens],
            places=self._places[:, :num_tokens],
            rest=self._places[:, num_tokens:count],
            padding=self._padding[:, num_tokens:count],
        )

    def _load_tables(self, block_tables: Tensor) -> None:
        """Copy rows' block tables into the buffer, unless they are there."""
        if block_tables is not self._tables_of:
            num_rows, num_blocks = block_tables.shape
            self._tables[:num_rows, :num_blocks].copy_(block_tables)
            self._tables_of = block_tables

    def _pass(self, count: int, width: int) -> Replay:
        def run() -> None:
            token_ids, positions, slots, rows = self._newest[count].there[:, :count]
            batch = TokenBatch(
                positions=positions,
                slots=slots,
                rows=rows,
                block_tables=self._tables[:, :width],
                block_size=self._limits.block_size,
            )
            hidden = self._decoder.embed(token_ids)
            for segment in self._segments:
                hidden = self._decoder.run(hidden, segment, self._cache, batch)
            self._result[:count].copy_(hidden)
            self._logits[:count].copy_(self._decoder.logits(hidden))

        return self._captured(("pass", count, width), run)

    def _segment(self, index: int, count: int, width: int) -> Replay:
        def run() -> None:
            batch = TokenBatch(
                positions=self._places[0, :count],
                slots=self._places[1, :count],
                rows=self._places[2, :count],
                block_tables=self._tables[:, :width],
                block_size=self._limits.block_size,
            )
            segment, hidden = self._segments[index], self._hidden[:count]
            self._result[:count].copy_(self._decoder.run(hidden, segment, self._cache, batch))

        return self._captured((f"segment {index}", count, width), run)

    def _last(self, count: int) -> Replay:
        def run() -> None:
            self._logits[:count].copy_(self._decoder.logits(self._hidden[:count]))

        return self._captured(("logits", count, 0), run)

    def _captured(self, key: tuple[str, int, int], run: Callable[[], None]) -> Replay:
        if key not in self._replays:
            # Captured on padding: slots in the buffers from an earlier call may be in use by now.
            self._places.copy_(self._padding)
            self._places_of = None
            self._replays[key] = self._capture(run)
        return self._replays[key]
