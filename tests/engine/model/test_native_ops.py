"""The native kernels against plain torch, and their promise: a token's bits do not depend on what
shares its call.
"""

import os
from collections.abc import Mapping, Sequence

import pytest
import torch
from backends import needs_native
from native_values import EPS, assert_close, randn, rounded
from token_sets import random_sets
from torch import Tensor

from engine.model.block_weight import quantize
from engine.model.noise import SaltedIds, gumbel
from engine.model.ops.interface import AttentionParams, LayerCache, TokenBatch
from engine.model.ops.native.linear import PANEL, Format
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps

pytestmark = [pytest.mark.torch, needs_native]

REFERENCE = TorchOps("cpu")
ROW_COUNTS = (*range(1, 21), 25, 33, 64, 100)  # every shape of tiles, then several of each
# (out, in) of the default model's linears, then odd ones.
SHAPES = ((960, 576), (576, 576), (576, 1536), (97, 48), (1, 16), (33, 130), (16, 7), (2048, 64))


@pytest.fixture(scope="module", params=[1, 2, 3])
def ops(request: pytest.FixtureRequest) -> NativeOps:
    return NativeOps(request.param)


# ---- linear, gate_up, embed ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [False, True])
def test_linear_is_torchs(ops: NativeOps, shape: tuple[int, int], fused: bool) -> None:
    out, size = shape
    weight, bias = randn(out, size, scale=size**-0.5), randn(out, seed=1) if fused else None
    x = randn(7, size, seed=2)
    norm = randn(size, seed=3) if fused else None
    residual = randn(7, out, seed=4) if fused else None
    options = {"norm": norm, "eps": EPS, "residual": residual}
    actual = ops.linear(x, ops.pack(weight, bias), **options)
    assert_close(actual, REFERENCE.linear(x, REFERENCE.pack(weight, bias), **options))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_linear_do_not_depend_on_their_number(
    ops: NativeOps, shape: tuple[int, int]
) -> None:
    out, size = shape
    weight = ops.pack(randn(out, size), randn(out, seed=1))
    x, norm, residual = randn(100, size, seed=2), randn(size, seed=3), randn(100, out, seed=4)
    alone = torch.cat(
        [
            ops.linear(x[i : i + 1], weight, norm=norm, eps=EPS, residual=residual[i : i + 1])
            for i in range(100)
        ]
    )
    for count in ROW_COUNTS:
        first = (100 - count) // 2
        rows = slice(first, first + count)
        together = ops.linear(x[rows], weight, norm=norm, eps=EPS, residual=residual[rows])
        assert torch.equal(together, alone[rows]), f"{count} rows"


@pytest.mark.parametrize("width", [1536, 80, 24])  # 24 is no whole number of panels
def test_gate_up_is_torchs_and_its_rows_are_exact(ops: NativeOps, width: int) -> None:
    weight, bias = randn(2 * width, 64, scale=0.3), randn(2 * width, seed=1)
    x, norm = randn(100, 64, seed=2), randn(64, seed=3)
    packed = ops.pack(weight, bias)
    expected = REFERENCE.gate_up(x, REFERENCE.pack(weight, bias), norm=norm, eps=EPS)
    alone = torch.cat([ops.gate_up(x[i : i + 1], packed, norm=norm, eps=EPS) for i in range(100)])
    assert_close(alone, expected)
    for count in ROW_COUNTS:
        assert torch.equal(ops.gate_up(x[:count], packed, norm=norm, eps=EPS), alone[:count])


@pytest.mark.parametrize("form", Format)
def test_products_do_not_depend_on_how_threads_share_them(form: Format) -> None:
    """The last panels are shared out in smaller groups, so that no thread waits for another."""
    alone, together = NativeOps(1, form), NativeOps(5, form)
    for panels in (1, 2, 3, 9, 36, 41):
        weight = randn(2 * panels * PANEL, 64, scale=0.3)
        for tokens in (1, 4, 7, 13):
            x, norm = randn(tokens, 64, seed=tokens), randn(64)
            for name in ("linear", "gate_up"):
                one, other = (
                    getattr(ops, name)(x, ops.pack(weight), norm=norm, eps=EPS)
                    for ops in (alone, together)
                )
                assert torch.equal(one, other), (name, panels, tokens)


def test_gate_survives_extreme_values(ops: NativeOps) -> None:
    gates = torch.tensor([[-200.0, -95.0, -1e-30, 0.0, 1e-30, 95.0, 200.0] + [1.0] * 9])
    weight = ops.pack(torch.cat((torch.eye(16), torch.eye(16))))
    norm = gates.pow(2).mean().sqrt().expand(16).contiguous()  # undoes the normalization
    actual = ops.gate_up(gates, weight, norm=norm, eps=0.0)
    expected = torch.nn.functional.silu(gates) * gates
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-30)


def test_embed_returns_the_packed_rows_exactly(ops: NativeOps) -> None:
    weight = randn(97, 48)
    ids = torch.tensor([0, 96, 16, 15, 16], dtype=torch.int32)
    assert torch.equal(ops.embed(ids, ops.pack(weight)), weight[ids.long()])


# ---- smaller forms of weights ----

FORMS = (Format.BFLOAT16, Format.INT8, Format.INT4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(960, 576), (97, 64), (16, 1536), (7, 32)])
@pytest.mark.parametrize("threads", [1, 3])
def test_small_forms_change_no_bit_of_a_product(
    form: Format, shape: tuple[int, int], threads: int
) -> None:
    """Few rows multiply with panels as they are; for many rows panels are expanded first."""
    out, size = shape
    weight, bias = randn(out, size, scale=size**-0.5), randn(out, seed=1)
    x, norm, residual = randn(40, size, seed=2), randn(size, seed=3), randn(40, out, seed=4)
    small = NativeOps(threads, form).pack(weight, bias)
    ops = NativeOps(threads)
    full = ops.pack(rounded(weight, form), bias)
    assert small.format is form
    assert small.num_bytes < full.num_bytes
    for count in (*range(1, 21), 25, 40):
        options = {"norm": norm, "eps": EPS, "residual": residual[:count]}
        actual = ops.linear(x[:count], small, **options)
        assert torch.equal(actual, ops.linear(x[:count], full, **options)), f"{count} rows"


@pytest.mark.parametrize("form", FORMS)
def test_small_forms_change_no_bit_of_gate_and_up(form: Format) -> None:
    weight, x, norm = randn(192, 64, scale=0.3), randn(40, 64, seed=2), randn(64, seed=3)
    ops = NativeOps(2, form)
    full = NativeOps(2).pack(rounded(weight, form))
    for count in (*range(1, 21), 40):
        actual = ops.gate_up(x[:count], ops.pack(weight), norm=norm, eps=EPS)
        assert torch.equal(actual, ops.gate_up(x[:count], full, norm=norm, eps=EPS))


@pytest.mark.parametrize("form", FORMS)
def test_embed_returns_what_a_small_form_stands_for(form: Format) -> None:
    weight = randn(97, 64)
    ids = torch.tensor([0, 96, 16, 15, 16], dtype=torch.int32)
    ops = NativeOps(1, form)
    assert torch.equal(ops.embed(ids, ops.pack(weight)), rounded(weight, form)[ids.long()])


def test_blocks_are_kept_as_they_are_whatever_floats_become() -> None:
    blocks = quantize(randn(48, 64), 4)
    packed = NativeOps(1).pack(blocks)
    ids = torch.arange(48, dtype=torch.int32)
    assert packed.format is Format.INT4
    assert torch.equal(NativeOps(1).embed(ids, packed), blocks.dequantize())


def test_tables_have_eight_bits_at_least_and_odd_sizes_stay_floats() -> None:
    ops = NativeOps(1, Format.INT4)
    assert ops.pack(randn(16, 64), is_table=True).format is Format.INT8
    assert ops.pack(randn(16, 33)).format is Format.FLOAT32
    assert NativeOps(1, Format.BFLOAT16).pack(randn(16, 7)).format is Format.FLOAT32


def test_embed_refuses_ids_outside_the_table(ops: NativeOps) -> None:
    with pytest.raises(AssertionError, match="out of range"):
        ops.embed(torch.tensor([97], dtype=torch.int32), ops.pack(randn(97, 48)))


def test_half_precision_weights_are_packed_as_they_are(ops: NativeOps) -> None:
    weight = randn(5000, 24).bfloat16()  # more rows than are converted at a time
    ids = torch.arange(5000, dtype=torch.int32)
    assert torch.equal(ops.embed(ids, ops.pack(weight)), weight.float())


def test_wrong_types_are_refused(ops: NativeOps) -> None:
    with pytest.raises(AssertionError, match="float64"):
        ops.linear(randn(2, 16).double(), ops.pack(randn(16, 16)))


def test_threads_stop_whenever_they_are_told_to() -> None:
    weight, x = randn(64, 16), randn(1, 16)
    for _ in range(200):
        ops = NativeOps(3)
        ops.linear(x, ops.pack(weight))
        del ops  # right after a job, while its last thread may still be on its way into it


# ---- attention ----

BLOCK_SIZE = 16
# (query heads, key heads, head size, window, query and key norms)
LAYERS = (
    (9, 3, 64, None, False),
    (4, 4, 80, None, False),
    (8, 1, 128, None, True),
    (32, 1, 16, None, False),
    (4, 2, 8, 40, False),
    (6, 2, 64, 100, True),
)


def layer_params(layer: tuple[int, int, int, int | None, bool]) -> AttentionParams:
    heads, kv_heads, size, window, has_norms = layer
    angles = torch.arange(512.0)[:, None] * 10000.0 ** -(torch.arange(size // 2) / (size // 2))
    return AttentionParams(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5,
        rope_cos=angles.cos(),
        rope_sin=angles.sin(),
        norm_eps=EPS,
        q_norm=randn(size, seed=8) if has_norms else None,
        k_norm=randn(size, seed=9) if has_norms else None,
        sliding_window=window,
    )


class Rows:
    """Two sequences of 300 tokens whose blocks lie scattered in a pool of garbage."""

    length = 300

    def __init__(self, params: AttentionParams) -> None:
        self.params = params
        shape = (64 * BLOCK_SIZE, params.num_kv_heads, params.head_size)
        self.cache = LayerCache(
            keys=torch.full(shape, torch.nan), values=torch.full(shape, torch.nan)
        )
        order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
        self.block_tables = order[:40].view(2, 20).to(torch.int32).contiguous()
        self.spare_block = int(order[40])
        width = (params.num_heads + 2 * params.num_kv_heads) * params.head_size
        self.qkv = randn(2, self.length, width, seed=6)

    def run(
        self,
        ops: NativeOps | TorchOps,
        tokens: Sequence[tuple[int, int]],
        aside: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Attend with the tokens at (row, position) pairs, as one call.

        Args:
            aside: By index, the tokens that stand aside, with their q, k and v, which replace the
                row's.
        """
        rows = torch.tensor([row for row, _ in tokens])
        positions = torch.tensor([position for _, position in tokens])
        blocks = self.block_tables[rows, positions // BLOCK_SIZE]
        slots = (blocks * BLOCK_SIZE + positions % BLOCK_SIZE).to(torch.int32)
        qkv = self.qkv[rows, positions]
        for spare, (index, other) in enumerate((aside or {}).items()):
            slots[index] = self.spare_block * BLOCK_SIZE + spare
            qkv[index] = other
        batch = TokenBatch(
            positions=positions.to(torch.int32),
            slots=slots,
            rows=rows.to(torch.int32),
            block_tables=self.block_tables,
            block_size=BLOCK_SIZE,
        )
        return ops.attention(qkv, self.params, self.cache, batch)

    def run_in_chunks(self, ops: NativeOps | TorchOps, row: int, size: int) -> Tensor:
        starts = range(0, self.length, size)
        ends = [min(start + size, self.length) for start in starts]
        return torch.cat(
            [
                self.run(ops, [(row, p) for p in range(start, end)])
                for start, end in zip(starts, ends, strict=True)
            ]
        )


@pytest.mark.parametrize("layer", LAYERS)
def test_attention_is_torchs(ops: NativeOps, layer: tuple[int, int, int, int | None, bool]) -> None:
    rows, reference = Rows(layer_params(layer)), Rows(layer_params(layer))
    actual = rows.run_in_chunks(ops, 0, 300)
    expected = reference.run_in_chunks(REFERENCE, 0, 300)
    assert_close(actual, expected)
    assert torch.equal(rows.cache.values.isnan(), reference.cache.values.isnan())
    assert_close(rows.cache.keys.nan_to_num(), reference.cache.keys.nan_to_num())


@pytest.mark.parametrize("layer", LAYERS)
def test_attention_does_not_depend_on_the_chunking(
    ops: NativeOps, layer: tuple[int, int, int, int | None, bool]
) -> None:
    rows = Rows(layer_params(layer))
    alone = rows.run_in_chunks(ops, 1, 1)
    for size in (2, 3, 7, 16, 64, 129, 300):
        assert torch.equal(rows.run_in_chunks(ops, 1, size), alone), f"{size} tokens a call"


def test_attention_does_not_depend_on_how_threads_share_it() -> None:
    """Eight threads share out a call of 300 tokens by head, one of 150 by part of the context."""
    rows = Rows(layer_params((32, 32, 128, None, False)))
    for size in (150, 300):
        alone, together = (rows.run_in_chunks(NativeOps(threads), 0, size) for threads in (1, 8))
        assert torch.equal(alone, together)


def test_attention_of_rows_that_share_a_call(ops: NativeOps) -> None:
    rows = Rows(layer_params(LAYERS[0]))
    first, second = rows.run_in_chunks(ops, 0, 300), rows.run_in_chunks(ops, 1, 300)
    tokens = [(0, 7), (1, 250), (1, 251), (0, 130), (0, 140), (1, 299)]
    together = rows.run(ops, tokens)
    for i, (row, position) in enumerate(tokens):
        assert torch.equal(together[i], (first, second)[row][position])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("position", [0, 15, 16, 200])
def test_a_token_aside_is_as_if_it_stood_in_its_place(
    ops: NativeOps, layer: tuple[int, int, int, int | None, bool], position: int
) -> None:
    """Two tokens stand aside between others of their row, which do not see them."""
    rows, there = Rows(layer_params(layer)), Rows(layer_params(layer))
    others = randn(2, rows.qkv.shape[2], seed=9)
    clean = rows.run_in_chunks(ops, 0, 300)
    expected = []
    for other in others:
        there.qkv[0, position] = other
        expected.append(there.run_in_chunks(ops, 0, 300)[position])
    tokens = [(0, p) for p in (position, position + 1, position, position + 2, position)]
    for backend in (ops, REFERENCE):
        together = rows.run(backend, tokens, {2: others[0], 4: others[1]})
        for index, right in ((0, clean[position]), (1, clean[position + 1]), (2, expected[0])):
            assert_close(together[index], right)
        if backend is ops:
            assert torch.equal(together[[0, 1, 3]], clean[position : position + 3])
            assert torch.equal(together[[2, 4]], torch.stack(expected))
    assert torch.equal(rows.run_in_chunks(ops, 0, 300), clean)


def test_a_poisoned_token_leaves_older_ones_alone(ops: NativeOps) -> None:
    rows = Rows(layer_params(LAYERS[0]))
    clean = rows.run_in_chunks(ops, 0, 300)
    rows.qkv[0, 200] = torch.nan
    poisoned = rows.run_in_chunks(ops, 0, 300)
    assert torch.equal(poisoned[:200], clean[:200])
    assert poisoned[200:].isnan().all()


def test_attention_refuses_positions_outside_the_tables(ops: NativeOps) -> None:
    rows = Rows(layer_params(LAYERS[0]))
    batch = TokenBatch(
        positions=torch.tensor([512], dtype=torch.int32),
        slots=torch.tensor([0], dtype=torch.int32),
        rows=torch.tensor([0], dtype=torch.int32),
        block_tables=rows.block_tables,
        block_size=BLOCK_SIZE,
    )
    with pytest.raises(AssertionError, match="out of range"):
        ops.attention(rows.qkv[0, :1], rows.params, rows.cache, batch)


# ---- exclude ----


@pytest.mark.parametrize("columns", [1, 31, 100, 4097, 49152])
def test_what_rows_do_not_allow_is_excluded(ops: NativeOps, columns: int) -> None:
    allowed = random_sets([3, 0], 49152)
    ids = torch.randperm(49152, generator=torch.Generator().manual_seed(1))[:columns].int()
    logits = randn(5, columns)
    logits[0, 0] = torch.nan
    for token_ids in (None, ids):
        expected, found = logits.clone(), logits.clone()
        TorchOps("cpu").exclude(expected, allowed, token_ids)
        ops.exclude(found, allowed, token_ids)
        assert found.view(torch.int32).equal(expected.view(torch.int32)), "to the bit"
        assert found[[1, 2, 4]].equal(logits[[1, 2, 4]])
        words = allowed[0, 1:].tolist()
        of_columns = range(columns) if token_ids is None else token_ids.tolist()
        is_out = [not words[i // 32] >> i % 32 & 1 for i in of_columns]
        assert found[3].isneginf().tolist() == is_out


def test_sets_of_rows_or_tokens_that_are_not_there_are_refused(ops: NativeOps) -> None:
    for allowed, columns, token_ids in (
        (random_sets([2], 64), 64, None),
        (random_sets([-1], 64), 64, None),
        (random_sets([0], 64), 65, None),
        (random_sets([0], 64), 1, torch.tensor([64], dtype=torch.int32)),
        (random_sets([0], 64), 1, torch.tensor([-1], dtype=torch.int32)),
    ):
        with pytest.raises(AssertionError, match="out of range"):
            ops.exclude(randn(2, columns), allowed, token_ids)


# ---- sample ----


def test_greedy_takes_the_lowest_of_the_best(ops: NativeOps) -> None:
    logits = randn(4, 49152)
    logits[1, [5, 4096, 49151]] = 9.0
    logits[2] = -torch.inf
    logits[3, 49151] = 9.0
    zero, keys = torch.zeros(4), torch.arange(4)
    assert ops.sample(logits, zero, keys).tolist() == [int(logits[0].argmax()), 5, 0, 49151]


@pytest.mark.parametrize("columns", [1, 15, 100, 4097, 49152])
@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0, 40.0])
def test_noise_is_the_contracts(ops: NativeOps, columns: int, spread: float) -> None:
    """The spread of the logits decides whether every column may win with noise, or hardly any."""
    logits = randn(40, columns, scale=spread)
    inverse = torch.linspace(0.3, 2.0, 40)
    keys = torch.arange(40) * 0x1234567890ABCDEF
    ids = torch.randperm(60000, generator=torch.Generator().manual_seed(1))[:columns].to(
        torch.int32
    )
    for token_ids in (None, ids):
        noise = gumbel(keys, torch.arange(columns) if token_ids is None else token_ids)
        scores = logits * inverse[:, None] + noise
        chosen = ops.sample(logits, inverse, keys, token_ids)
        best = scores.gather(1, chosen[:, None])[:, 0]
        assert (scores.max(1).values - best).abs().max() < 2e-6, "no more than a near-tie apart"
        assert (chosen == scores.argmax(1)).float().mean() > 0.9


def test_a_choice_does_not_depend_on_other_columns_or_rows(ops: NativeOps) -> None:
    """A reduced vocabulary with the winner in it gives the winner, to the bit."""
    logits, keys, ones = randn(8, 49152), torch.arange(8) * 977, torch.ones(8)
    chosen = ops.sample(logits, ones, keys)
    for row in range(8):
        ids = torch.cat((torch.arange(3, 5000, 7), chosen[row : row + 1])).to(torch.int32)
        reduced = ops.sample(logits[row : row + 1, ids.long()], ones[:1], keys[row : row + 1], ids)
        assert ids[reduced.item()] == chosen[row]


def test_an_excluded_token_is_never_chosen(ops: NativeOps) -> None:
    logits = torch.full((64, 100), -torch.inf)
    logits[:, 37] = -50.0
    assert ops.sample(logits, torch.ones(64), torch.arange(64)).tolist() == [37] * 64


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nan_is_reported_by_row(ops: NativeOps, scale: float) -> None:
    logits = randn(3, 10000)
    logits[1, 9999] = torch.nan
    chosen = ops.sample(logits, torch.full((3,), scale), torch.arange(3))
    assert chosen[1] == -1
    assert (chosen[[0, 2]] >= 0).all()


# ---- expect ----


def salted(columns: int) -> SaltedIds:
    ids = torch.randperm(60000, generator=torch.Generator().manual_seed(1))[:columns]
    return SaltedIds.of(ids.to(torch.int32))


@pytest.mark.parametrize("columns", [1, 15, 100, 2049, 8192])
@pytest.mark.parametrize("temperature", [0.0, 0.8, None])
def test_expectations_are_torchs(ops: NativeOps, columns: int, temperature: float | None) -> None:
    """Without a temperature, some rows are greedy and some are not."""
    logits, other = randn(40, columns, scale=3.0), randn(40, 1, seed=1, scale=3.0)
    logits[5, columns // 2] = other[6] = 60.0
    logits[7] = logits[8, : columns // 2] = -torch.inf
    temperatures = torch.linspace(-0.5, 2.0, 40).clamp_min(0.0)
    if temperature is not None:
        temperatures[:] = temperature
    keys = None if temperature == 0.0 else torch.arange(40) * 0x1234567890ABCDEF
    followers = torch.arange(40) * 977 % (columns + 1)
    asked = (logits, other, temperatures, keys, salted(columns), followers)
    actual, expected = ops.expect(*asked), REFERENCE.expect(*asked)
    assert actual[:, 0].tolist() == expected[:, 0].tolist()
    hopeless = expected[:, 4].isinf()
    actual[hopeless, 3] = expected[hopeless, 3]  # one of many without any share
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual[6, 0] == columns
    assert (actual[:, 3] != actual[:, 0]).all()


def test_an_expectation_does_not_depend_on_other_rows(ops: NativeOps) -> None:
    logits, other, ids = randn(8, 5000), randn(8, 1, seed=1), salted(5000)
    temperatures, keys = torch.linspace(0.0, 1.4, 8), torch.arange(8) * 977
    followers = torch.arange(8) * 700
    together = ops.expect(logits, other, temperatures, keys, ids, followers)
    for i in range(8):
        row = slice(i, i + 1)
        alone = ops.expect(
            logits[row], other[row], temperatures[row], keys[row], ids, followers[row]
        )
        assert torch.equal(alone, together[row])


def test_the_lowest_of_equals_is_expected(ops: NativeOps) -> None:
    logits, zeros = torch.zeros(4, 5000), torch.zeros(4)
    logits[1, [4500, 7, 2048]] = logits[2, [4999, 2060]] = 9.0
    logits[3, 4999] = 9.0
    other = torch.tensor([[0.0], [9.0], [8.0], [9.5]])
    followers = torch.tensor([5000, 7, 4999, 5000])
    actual = ops.expect(logits, other, zeros, None, salted(5000), followers)
    assert actual[:, 0].tolist() == [0, 7, 2060, 5000]
    assert torch.equal(actual[:, 1], actual[:, 2])
    assert actual[1, 4] == actual[1, 1]
    assert float(actual[3, 4]) == pytest.approx(float(actual[3, 1]) - 0.5)
    assert actual[1, 3] in (2048, 4500, 5000)
    assert actual[2, 3] == 4999


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_expected_where_there_is_nan_or_nothing_finite(
    ops: NativeOps, temperature: float
) -> None:
    logits, other = randn(6, 5000), randn(6, 1, seed=1)
    logits[0, 4999] = logits[1, 0] = other[2] = torch.nan
    logits[3], other[3] = -torch.inf, -torch.inf
    logits[4, 17] = torch.inf
    temperatures, keys = torch.full((6,), temperature), torch.arange(6)
    followers = torch.tensor([3, 5000, 3, 5000, 17, 5000])
    for backend in (ops, REFERENCE):
        facts = backend.expect(logits, other, temperatures, keys, salted(5000), followers)
        shares = facts[:, [1, 2, 4]]
        assert shares.isnan().all(dim=1).tolist() == [True] * 5 + [False]
        assert not shares[5].isnan().any()


# ---- threads ----


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system with affinity masks")
def test_threads_but_the_callers_own_stay_on_their_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    ops = NativeOps(3, cores=[cores[0], cores[-1], cores[0]])
    masks = [
        os.sched_getaffinity(int(task)) for task in set(os.listdir("/proc/self/task")) - before
    ]
    assert sorted(masks, key=min) == sorted([{cores[-1]}, {cores[0]}], key=min)
    assert os.sched_getaffinity(0) == set(cores)
    assert ops.linear(torch.ones(2, 64), ops.pack(torch.ones(64, 64))).eq(64).all()
