"""The CUDA backend against plain torch: on a GPU, or on a CPU in Triton's interpreter."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cuda_backend import DEVICE, HALF, cuda_ops, needs_gpu, needs_kernels
from tiny_model import StepDriver, load_tiny, sequence_start, write_tiny_llama
from token_sets import random_sets
from torch import Tensor

from benchmarks.scripted import ScriptedDrafter
from engine.model.noise import SaltedIds
from engine.model.ops.interface import AttentionParams, LayerCache, TokenBatch
from engine.model.ops.torch_ops import TorchOps

pytestmark = [pytest.mark.torch, needs_kernels]

BLOCK = 8
_KERNELS = "engine.model.ops.cuda.attention_kernels"  # imports Triton, which may not be there
DTYPES = (torch.float32, HALF)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE)


def assert_near(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare with what was computed in float32 from the same rounded inputs."""
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 5, 17, 70])
def test_linear(count: int, dtype: torch.dtype) -> None:
    """Covers every tile, an inner size that no step divides, and bias, residual and norm."""
    ours, reference = cuda_ops(dtype), TorchOps(DEVICE)
    weight, bias = random(97, 56, seed=1, scale=0.2).to(dtype), random(97, seed=2).to(dtype)
    x, residual = random(count, 56, seed=3).to(dtype), random(count, 97, seed=4).to(dtype)
    norm = random(56, seed=5).to(dtype)

    result = ours.linear(x, ours.pack(weight, bias), norm=norm, eps=1e-5, residual=residual)

    expected = reference.linear(
        x.float(),
        reference.pack(weight.float(), bias.float()),
        norm=norm.float(),
        eps=1e-5,
        residual=residual.float(),
    )
    assert result.dtype is dtype
    assert_near(result, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_gate_up(exact: bool, dtype: torch.dtype) -> None:
    ours, reference = cuda_ops(dtype, exact=exact), TorchOps(DEVICE)
    weight, norm = random(80, 48, seed=1, scale=0.2).to(dtype), random(48, seed=2).to(dtype)
    x = random(5, 48, seed=3).to(dtype)

    result = ours.gate_up(x, ours.pack(weight), norm=norm, eps=1e-5)

    packed = reference.pack(weight.float())
    assert_near(result, reference.gate_up(x.float(), packed, norm=norm.float(), eps=1e-5), dtype)


def test_logits_of_a_table_are_not_rounded() -> None:
    ours = cuda_ops(HALF)
    table = random(33, 32, seed=1).to(HALF)
    x = random(3, 32, seed=2).to(HALF)

    logits = ours.linear(x, ours.pack(table, is_table=True))

    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits, x.float() @ table.float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
def test_rows_of_a_product_do_not_depend_on_their_number(count: int) -> None:
    ours = cuda_ops(HALF)
    weight = ours.pack(random(64, 80, seed=1))
    x = random(16, 80, seed=2).to(HALF)
    together = ours.linear(x, weight)
    for start in range(0, 16, count):
        part = ours.linear(x[start : start + count], weight)
        assert torch.equal(part, together[start : start + count])


class Past:
    """Rows of a given length in scattered blocks, and attention over them by two backends."""

    def __init__(self, lengths: Sequence[int], dtype: torch.dtype, **options: object) -> None:
        self.dtype = dtype
        self.lengths = lengths
        width = -(-max(lengths) // BLOCK)
        order = torch.randperm(width * len(lengths), generator=torch.Generator().manual_seed(3))
        self.tables = order.view(len(lengths), width).int().to(DEVICE)
        positions = 256
        angles = random(positions, 8, seed=9)
        self.params = AttentionParams(
            num_heads=4,
            num_kv_heads=2,
            head_size=16,
            scale=0.25,
            rope_cos=angles.cos(),
            rope_sin=angles.sin(),
            norm_eps=1e-5,
            **options,  # type: ignore[arg-type]
        )
        self._spare_slot = order.numel() * BLOCK
        shape = (self._spare_slot + BLOCK, 2, 16)
        self._keys = random(*shape, seed=4).to(dtype)
        self._values = random(*shape, seed=5).to(dtype)

    def batch(self, tokens: Sequence[tuple[int, int]]) -> TokenBatch:
        """Return the batch of (row, position) pairs; a repeated one stands aside."""
        slots = [int(self.tables[r, p // BLOCK]) * BLOCK + p % BLOCK for r, p in tokens]
        for index, token in enumerate(tokens):
            if token in tokens[:index]:
                slots[index] = self._spare_slot + index

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=DEVICE)

        return TokenBatch(
            positions=ints([p for _, p in tokens]),
            slots=ints(slots),
            rows=ints([r for r, _ in tokens]),
            block_tables=self.tables,
            block_size=BLOCK,
        )

    def check(self, tokens: Sequence[tuple[int, int]]) -> None:
        """Check that both backends return the same and write the same keys and values."""
        batch = self.batch(tokens)
        qkv = random(len(tokens), 8 * 16, seed=6).to(self.dtype)
        ours = LayerCache(keys=self._keys.clone(), values=self._values.clone())
        theirs = LayerCache(keys=self._keys.float(), values=self._values.float())
        params = self.params
        result = cuda_ops(self.dtype).attention(qkv, params, ours, batch)
        expected = TorchOps(DEVICE).attention(qkv.float(), params, theirs, batch)
        assert_near(result, expected, self.dtype)
        assert_near(ours.keys, theirs.keys, self.dtype)
        assert torch.equal(ours.values.float(), theirs.values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_of_decoding_rows(dtype: torch.dtype) -> None:
    """One or several new tokens per row, over one chunk of the past or several."""
    past = Past([3, 140, 256], dtype)
    past.check([(0, 2), (1, 136), (1, 137), (1, 139), (2, 127), (2, 128), (2, 255)])


def test_attention_of_tokens_aside() -> None:
    past = Past([3, 140], torch.float32)
    past.check([(1, 136), (1, 137), (1, 138), (0, 2), (1, 137), (0, 2)])


def test_attention_of_a_prefill_chunk() -> None:
    Past([150], torch.float32).check([(0, position) for position in range(120, 132)])


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("most_chunks", "combined"), [(2, 16), (64, 2)])
def test_attention_over_long_pasts(
    most_chunks: int, combined: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either chunks get longer to stay few, or there are more than are combined at a time."""
    monkeypatch.setattr(f"{_KERNELS}._MOST_CHUNKS", most_chunks)
    monkeypatch.setattr(f"{_KERNELS}._COMBINED", combined)
    past = Past([256], torch.float32, sliding_window=window)
    past.check([(0, position) for position in (63, 127, 128, 255)])


@pytest.mark.parametrize("window", [5, 64, 130])
def test_attention_within_a_window(window: int) -> None:
    past = Past([256], torch.float32, sliding_window=window)
    past.check([(0, position) for position in (0, 4, 63, 64, 130, 192, 255)])


def test_attention_with_normalized_heads() -> None:
    q_norm, k_norm = random(16, seed=7), random(16, seed=8)
    Past([20], torch.float32, q_norm=q_norm, k_norm=k_norm).check([(0, 18), (0, 19)])


@pytest.mark.gpu
@needs_gpu
def test_attention_does_not_depend_on_company() -> None:
    past = Past([200, 9], HALF)
    tokens = [(0, 150), (0, 151), (1, 3), (0, 199)]
    qkv = random(4, 8 * 16, seed=6).to(HALF)
    cache = LayerCache(
        keys=random(2 * 25 * BLOCK, 2, 16, seed=4).to(HALF),
        values=random(2 * 25 * BLOCK, 2, 16, seed=5).to(HALF),
    )
    ops = cuda_ops(HALF)
    together = ops.attention(qkv, past.params, cache, past.batch(tokens))
    for index, token in enumerate(tokens):
        alone = ops.attention(qkv[index : index + 1], past.params, cache, past.batch([token]))
        assert torch.equal(alone[0], together[index])


def test_excluding_is_torchs() -> None:
    allowed = random_sets([2, 0], 5000).to(DEVICE)
    for token_ids in (None, torch.arange(5000, device=DEVICE).flip(0)[:4100].int()):
        logits = random(4, 5000 if token_ids is None else 4100, seed=1)
        logits[0, 0] = float("nan")
        expected, found = logits.clone(), logits.clone()
        TorchOps(DEVICE).exclude(expected, allowed, token_ids)
        cuda_ops().exclude(found, allowed, token_ids)
        assert found.view(torch.int32).equal(expected.view(torch.int32)), "to the bit"
        assert found[[1, 3]].equal(logits[[1, 3]])
        assert 0.4 < found[[0, 2]].isneginf().float().mean() < 0.6


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_sampling_is_torchs(scale: float) -> None:
    logits = random(4, 5000, seed=1)
    logits[1, 77] = float("nan")
    logits[2, 4000] = logits[2, 50] = 30.0  # a tie that noise breaks, and only noise
    logits[3, 1:] = float("-inf")
    scales = torch.full((4,), scale, device=DEVICE)
    keys = torch.tensor([5, 6, -(2**62), 2**63 - 1], device=DEVICE)
    ids = torch.arange(5000, device=DEVICE).flip(0).int()
    for token_ids in (None, ids):
        expected = TorchOps(DEVICE).sample(logits, scales, keys, token_ids)
        assert cuda_ops().sample(logits, scales, keys, token_ids).tolist() == expected.tolist()
        assert expected[1] == -1
        assert expected[3] == 0


def test_half_of_the_rows_may_be_greedy() -> None:
    logits = random(2, 300, seed=1)
    scales = torch.tensor([0.0, 1.0], device=DEVICE)
    keys = torch.tensor([1, 2], device=DEVICE)
    expected = TorchOps(DEVICE).sample(logits, scales, keys)
    assert cuda_ops().sample(logits, scales, keys).tolist() == expected.tolist()


Asked = tuple[Tensor, Tensor, Tensor, Tensor | None, SaltedIds, Tensor]


def asked_of(columns: int, temperatures: Tensor, *, has_noise: bool = True) -> Asked:
    """Return arguments of `expect`: a row per temperature, followers all over the columns."""
    rows = len(temperatures)
    count = torch.arange(rows, device=DEVICE)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(columns + 900, generator=generator)[:columns].int()
    return (
        random(rows, columns, scale=3.0),
        random(rows, 1, seed=1, scale=3.0),
        temperatures.to(DEVICE),
        count * 0x1234567890ABCDEF - 2**62 if has_noise else None,
        SaltedIds.of(ids.to(DEVICE)),
        (count * 977 + columns) % (columns + 1),
    )


@pytest.mark.parametrize("columns", [1, 100, 4095, 4096, 4097, 16384])
@pytest.mark.parametrize("has_noise", [True, False])
def test_expectations_are_torchs(columns: int, has_noise: bool) -> None:
    """Greedy rows, and rows at all temperatures; without keys all are greedy."""
    temperatures = torch.tensor([0.0, 0.01, 0.3, 0.8, 1.0, 2.0, 0.0, 0.8, 1.0]) * has_noise
    asked = asked_of(columns, temperatures, has_noise=has_noise)
    logits, other, *_ = asked
    logits[4, columns // 2] = other[5] = 60.0
    logits[6:8, : columns // 2] = -torch.inf

    actual, expected = cuda_ops().expect(*asked), TorchOps(DEVICE).expect(*asked)

    assert actual.dtype is torch.float64
    assert actual[:, [0, 3]].equal(expected[:, [0, 3]]), "the columns"
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert actual[5, 0] == columns


def test_a_whole_vocabulary_can_be_expected() -> None:
    asked = asked_of(128256, torch.tensor([0.0, 0.8]))
    actual, expected = cuda_ops().expect(*asked), TorchOps(DEVICE).expect(*asked)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_expectation_does_not_depend_on_other_rows() -> None:
    logits, other, temperatures, keys, ids, followers = asked_of(5000, torch.linspace(0, 1.2, 5))
    assert keys is not None
    together = cuda_ops().expect(logits, other, temperatures, keys, ids, followers)
    for i in range(5):
        row = slice(i, i + 1)
        mine = (logits[row], other[row], temperatures[row], keys[row], ids, followers[row])
        assert cuda_ops().expect(*mine).equal(together[row])


def test_the_lowest_of_equals_is_expected() -> None:
    logits = torch.zeros(5, 5000, device=DEVICE)
    logits[1, [4500, 7, 2048]] = logits[2, [4999, 2060, 4900]] = logits[4, [4096, 4999]] = 9.0
    logits[3, 4999] = 9.0
    other = torch.tensor([[0.0], [9.0], [8.0], [9.5], [10.0]], device=DEVICE)
    followers = torch.tensor([5000, 7, 4999, 5000, 5000], device=DEVICE)
    _, _, zeros, _, ids, _ = asked_of(5000, torch.zeros(5))
    actual = cuda_ops().expect(logits, other, zeros, None, ids, followers)
    assert actual[:, 0].tolist() == [0, 7, 2060, 5000, 5000]
    assert actual[:, 3].tolist() == [1, 2048, 4900, 4999, 4096]
    assert actual[:, 2].equal(actual[:, 1])
    assert actual[:3, 4].equal(actual[:3, 1])
    assert float(actual[3, 4]) == pytest.approx(float(actual[3, 1]) - 0.5, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_expected_where_there_is_nan_or_nothing_finite(temperature: float) -> None:
    asked = asked_of(5000, torch.full((6,), temperature))
    logits, other, *_ = asked
    logits[0, 4999] = logits[1, 0] = other[2] = torch.nan
    logits[3], other[3] = -torch.inf, -torch.inf
    logits[4, 17] = torch.inf
    facts = cuda_ops().expect(*asked)
    assert facts[:, [1, 2, 4]].isnan().all(dim=1).tolist() == [True] * 5 + [False]
    assert not facts[5].isnan().any()
    assert not facts[:, [0, 3]].isnan().any()


def test_an_excluded_token_is_not_expected() -> None:
    """If all tokens but one are excluded, there is no second-best."""
    asked = asked_of(300, torch.tensor([0.0, 0.8, 0.0, 0.8, 0.0, 0.8]))
    logits, other, *_ = asked
    logits[:] = -torch.inf
    logits[:4, 37], other[:] = -30.0, -50.0
    other[2:4] = -torch.inf
    actual, expected = cuda_ops().expect(*asked), TorchOps(DEVICE).expect(*asked)
    assert actual[:, 0].tolist() == [37] * 4 + [300] * 2
    assert actual[:, 4].isneginf().tolist() == [False] * 2 + [True] * 4
    torch.testing.assert_close(actual[:, [1, 2, 4]], expected[:, [1, 2, 4]], rtol=1e-4, atol=1e-5)


def test_nobody_can_be_asked() -> None:
    assert cuda_ops().expect(*asked_of(30, torch.zeros(0))).shape == (0, 5)


def test_early_exits_change_no_token_of_a_whole_model(tmp_path: Path) -> None:
    """Runs the decode step in half precision."""
    decoder = load_tiny(write_tiny_llama(tmp_path), cuda_ops(HALF))
    starts = [sequence_start(0, [5, 9], temperature=0.8)]
    plain, _ = StepDriver(decoder, BLOCK).generate(starts, 5)
    drafter = ScriptedDrafter([3], {(5, 9): plain[0]}, "sometimes", decoder.spec.vocab_size)
    drafted, results = StepDriver(decoder, BLOCK, drafter).generate(starts, 5)
    assert drafted == plain
    assert any(result.drafts for result in results)
