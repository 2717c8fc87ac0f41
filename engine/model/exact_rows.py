"""A check, on the machine itself, of whether a token's bits depend on what shares its call.

They must not, or decoding is not lossless: verifying several tokens must compute what decoding each
alone would. CPU kernels guarantee this by design and are tested for it; on a GPU it also depends on
the compiler. Knows the decoder, no sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache, TokenBatch

CHECKED_COUNTS = (2, 3, 5, 8, 16, 24, 33, 100)  # tokens per call that are compared with one
_LAYERS = 2  # how many of the model's layers are run; all have the same shapes
_POSITIONS_PER_ROW = 4  # new tokens of a row, at successive positions
_BLOCK_SIZE = 16
_PAST = 200  # positions before the longest row's new tokens: several chunks of attention


@torch.inference_mode()
def uneven_counts(decoder: Decoder) -> list[int]:
    """Return the counts of tokens per call whose states or logits differ from single tokens'."""
    probe = _Probe(decoder, max(CHECKED_COUNTS))
    alone = probe.run(1)
    return [
        count
        for count in CHECKED_COUNTS
        if not all(torch.equal(a, b) for a, b in zip(alone, probe.run(count), strict=True))
    ]


class _Probe:
    """Random tokens of several rows over random pasts, run in calls of any size."""

    def __init__(self, decoder: Decoder, num_tokens: int) -> None:
        self._decoder = decoder
        spec, device = decoder.spec, decoder.ops.device
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator)
            return values.to(device, decoder.ops.dtype)

        num_rows = -(-num_tokens // _POSITIONS_PER_ROW)
        max_positions = decoder.layers[0].attention.rope_cos.shape[0]
        longest = min(_PAST, max_positions - _POSITIONS_PER_ROW)
        width = -(-(longest + _POSITIONS_PER_ROW) // _BLOCK_SIZE)
        order = torch.randperm(num_rows * width, generator=generator)
        self._tables = order.view(num_rows, width).int()
        shape = (order.numel() * _BLOCK_SIZE, spec.num_kv_heads, spec.head_size)
        self._segment = Segment(0, min(_LAYERS, spec.num_layers))
        self._cache = [
            LayerCache(keys=random(*shape), values=random(*shape)) for _ in range(self._segment.end)
        ]
        self._hidden = random(num_tokens, spec.hidden_size)
        # Rows have pasts of different lengths.
        self._places = [
            (row, longest * (row + 1) // num_rows + step)
            for row in range(num_rows)
            for step in range(_POSITIONS_PER_ROW)
        ][:num_tokens]

    def run(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the states and logits of all tokens, run `count` per call."""
        states, logits = [], []
        for start in range(0, len(self._places), count):
            batch = self._batch(self._places[start : start + count])
            hidden = self._hidden[start : start + count]
            states.append(self._decoder.run(hidden, self._segment, self._cache, batch))
            logits.append(self._decoder.logits(states[-1]))
        return torch.cat(states), torch.cat(logits)

    def _batch(self, places: Sequence[tuple[int, int]]) -> TokenBatch:
        device = self._decoder.ops.device
        tables = self._tables.to(device)

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        slots = [
            int(self._tables[row, position // _BLOCK_SIZE]) * _BLOCK_SIZE + position % _BLOCK_SIZE
            for row, position in places
        ]
        return TokenBatch(
            positions=ints([position for _, position in places]),
            slots=ints(slots),
            rows=ints([row for row, _ in places]),
            block_tables=tables,
            block_size=_BLOCK_SIZE,
        )
