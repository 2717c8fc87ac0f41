"""A token's logits are the same bits whatever shares its call: batch size, place, chunking.

Lossless decoding rests on it: verifying several tokens computes the bits that decoding each alone
would.
"""

import pytest
import torch
from backends import available_ops
from default_model import default_model_directory
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import TokenBatch
from engine.model.ops.native_ops import NativeOps
from engine.worker.kv_cache import allocate_cache

pytestmark = [pytest.mark.torch, pytest.mark.model]

BLOCK = 16
NUM_ROWS = 16
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411]
LAST = len(PROMPT) - 1


@pytest.fixture(scope="module", params=available_ops(), ids=lambda ops: ops.name)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder.load(default_model_directory(), request.param, max_positions=256)


class Rows:
    """Rows in blocks of their own, each with the prompt rotated differently."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache = allocate_cache(
            decoder.spec, 4 * NUM_ROWS, BLOCK, dtype=torch.float32, device=torch.device("cpu")
        )
        self._tables = torch.arange(4 * NUM_ROWS, dtype=torch.int32).view(NUM_ROWS, 4)

    @staticmethod
    def prompt(row: int) -> list[int]:
        return PROMPT[row:] + PROMPT[:row]

    def run(self, tokens: list[tuple[int, int]]) -> Tensor:
        """Run (row, position) tokens through all layers as one call; returns their logits."""
        ids = [self.prompt(row)[position] for row, position in tokens]
        slots = [int(self._tables[r, p // BLOCK]) * BLOCK + p % BLOCK for r, p in tokens]
        batch = TokenBatch(
            positions=torch.tensor([p for _, p in tokens], dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int32),
            rows=torch.tensor([r for r, _ in tokens], dtype=torch.int32),
            block_tables=self._tables,
            block_size=BLOCK,
        )
        hidden = self._decoder.embed(torch.tensor(ids, dtype=torch.int32))
        segment = Segment(0, self._decoder.spec.num_layers)
        with torch.inference_mode():
            return self._decoder.logits(self._decoder.run(hidden, segment, self._cache, batch))


@pytest.mark.slow
def test_blocks_of_the_file_give_the_bits_of_their_expansion() -> None:
    """The default model's quantized weights give the logits of their float32 values, to the bit."""
    if NativeOps.unavailable_reason() is not None:
        pytest.skip("native kernels are not available")
    tokens = [(row, position) for row in range(3) for position in range(len(PROMPT))]
    expanded, blocks = (
        Rows(
            Decoder.load(
                default_model_directory(), NativeOps(2), max_positions=256, keep_blocks=keep
            )
        ).run(tokens)
        for keep in (False, True)
    )
    assert torch.equal(expanded, blocks)


@pytest.fixture(scope="module")
def rows(decoder: Decoder) -> Rows:
    """Rows whose prompts were read except for the last token, which may be run again and again."""
    rows = Rows(decoder)
    for row in range(NUM_ROWS):
        rows.run([(row, position) for position in range(LAST)])
    return rows


@pytest.fixture(scope="module")
def together(rows: Rows) -> Tensor:
    """Logits of all rows' last tokens, run as one call."""
    return rows.run([(row, LAST) for row in range(NUM_ROWS)])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
def test_rows_do_not_depend_on_their_number(rows: Rows, together: Tensor, count: int) -> None:
    for start in range(0, NUM_ROWS, count):
        members = list(range(start, min(start + count, NUM_ROWS)))
        part = rows.run([(row, LAST) for row in reversed(members)])
        assert torch.equal(part.flip(0), together[members])


@pytest.fixture(scope="module")
def whole(decoder: Decoder) -> Tensor:
    """A prompt's logits, run as one call."""
    return Rows(decoder).run([(0, position) for position in range(len(PROMPT))])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 16])
def test_chunking_a_prompt_changes_no_bit(decoder: Decoder, whole: Tensor, chunk: int) -> None:
    rows = Rows(decoder)
    parts = [
        rows.run([(0, p) for p in range(start, min(start + chunk, len(PROMPT)))])
        for start in range(0, len(PROMPT), chunk)
    ]
    assert torch.equal(torch.cat(parts), whole)
