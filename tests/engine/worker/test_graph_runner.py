"""Graphs compute what eager calls do, whatever is padded. Here a replay calls the part again."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from call_again import CallAgain
from tiny_model import StepDriver, random_heads, sequence_start
from torch import Tensor

from benchmarks.scripted import ScriptedDrafter
from engine.model.decoder import Decoder
from engine.model.ops.interface import LayerCache, TokenBatch
from engine.worker.capture import CAPTURED_COUNTS, fitting, token_counts_for
from engine.worker.decode_step import split_layers
from engine.worker.graph_runner import BatchLimits, GraphRunner
from engine.worker.head_graph import HeadGraph
from engine.worker.kv_cache import allocate_cache
from engine.worker.segment_runner import EagerRunner, NewestTokens

pytestmark = pytest.mark.torch

BLOCK = 16
NUM_BLOCKS = 1024  # as in `StepDriver`
SPARE = NUM_BLOCKS * BLOCK
SEGMENTS = split_layers(6, [2, 4])


def limits(**changes: object) -> BatchLimits:
    defaults: dict[str, object] = {
        "max_rows": 4,
        "max_positions": 256,
        "block_size": BLOCK,
        "spare_slot": SPARE,
        "token_counts": (1, 2, 4, 8),
    }
    return BatchLimits(**(defaults | changes))  # type: ignore[arg-type]


def new_cache(decoder: Decoder) -> list[LayerCache]:
    """Return a cache of zeros with the spare block."""
    cache = allocate_cache(
        decoder.spec, NUM_BLOCKS + 1, BLOCK, dtype=torch.float32, device=torch.device("cpu")
    )
    for layer in cache:
        layer.keys.zero_()
        layer.values.zero_()
    return list(cache)


def batch_of(tokens: list[tuple[int, int]], num_rows: int = 3) -> TokenBatch:
    """Return the batch of (row, position) tokens; row r owns blocks from 8 r on."""
    tables = torch.arange(num_rows * 8, dtype=torch.int32).view(num_rows, 8)
    slots = [int(tables[r, p // BLOCK]) * BLOCK + p % BLOCK for r, p in tokens]
    return TokenBatch(
        positions=torch.tensor([p for _, p in tokens], dtype=torch.int32),
        slots=torch.tensor(slots, dtype=torch.int32),
        rows=torch.tensor([r for r, _ in tokens], dtype=torch.int32),
        block_tables=tables,
        block_size=BLOCK,
    )


def hidden_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(seed))


def test_padding_changes_no_result_and_writes_to_the_spare_slot_alone(decoder: Decoder) -> None:
    caches = [new_cache(decoder) for _ in range(2)]
    called = EagerRunner(decoder, SEGMENTS, caches[0])
    replayed = GraphRunner(decoder, SEGMENTS, caches[1], limits(), CallAgain())
    replayed.prepare()
    for tokens in ([(0, 0), (1, 0), (2, 0)], [(0, 1)], [(2, 1), (0, 2), (0, 3), (1, 1), (1, 2)]):
        batch, hidden = batch_of(tokens), hidden_of(len(tokens))
        for index in range(len(SEGMENTS)):
            expected = called.run(index, hidden, batch)
            hidden = replayed.run(index, hidden, batch)
            assert torch.equal(hidden, expected)
        assert torch.equal(replayed.logits(hidden), called.logits(hidden))
    for mine, theirs in zip(caches[1], caches[0], strict=True):
        assert torch.equal(mine.keys[:SPARE], theirs.keys[:SPARE])
        assert torch.equal(mine.values[:SPARE], theirs.values[:SPARE])


@pytest.mark.parametrize("exits", [[2, 4], [0], []])
def test_a_step_that_only_decodes_is_one_replay(decoder: Decoder, exits: list[int]) -> None:
    segments = split_layers(6, exits)
    caches = [new_cache(decoder) for _ in range(2)]
    called = EagerRunner(decoder, segments, caches[0])
    capture = CallAgain()
    replayed = GraphRunner(decoder, segments, caches[1], limits(), capture)
    replayed.prepare()
    for replays, tokens in enumerate(([(0, 0), (1, 0), (2, 0)], [(1, 1)], [(1, 2), (0, 1)]), 1):
        batch, token_ids = batch_of(tokens), [7, 30, 5][: len(tokens)]
        expected = called.embed(torch.tensor(token_ids, dtype=torch.int32))
        for index in range(len(segments)):
            expected = called.run(index, expected, batch)
        places = [getattr(batch, name).tolist() for name in ("positions", "slots", "rows")]
        hidden = replayed.run_through(NewestTokens(token_ids, places, batch.block_tables))
        assert hidden is not None
        assert torch.equal(hidden, expected)
        logits = replayed.logits(hidden)
        assert capture.num_replays == replays, "logits are there already"
        assert torch.equal(logits, called.logits(expected))
    for mine, theirs in zip(caches[1], caches[0], strict=True):
        assert torch.equal(mine.keys[:SPARE], theirs.keys[:SPARE])


def test_logits_of_other_states_are_not_taken_for_those_of_the_last_pass(decoder: Decoder) -> None:
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), limits(), CallAgain())
    batch = batch_of([(0, 0)])
    places = [getattr(batch, name).tolist() for name in ("positions", "slots", "rows")]
    passed = runner.run_through(NewestTokens([7], places, batch.block_tables))
    assert passed is not None
    kept, first = passed.clone(), runner.logits(passed).clone()
    other = runner.logits(hidden_of(1)).clone()
    assert not torch.equal(other, first)
    assert torch.equal(runner.logits(kept), first)


def test_more_rows_than_were_captured_run_part_by_part(decoder: Decoder) -> None:
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), limits(max_rows=2), CallAgain())
    tables = batch_of([(0, 0)]).block_tables
    assert runner.run_through(NewestTokens([1, 2, 3], [[0] * 3, [0] * 3, [0] * 3], tables)) is None


def test_before_an_exit_at_layer_0_nothing_is_captured_and_nothing_runs(decoder: Decoder) -> None:
    capture, segments = CallAgain(), split_layers(6, [0, 4])
    runner = GraphRunner(decoder, segments, new_cache(decoder), limits(), capture)
    runner.prepare()
    whole = CallAgain()
    GraphRunner(decoder, segments[1:], new_cache(decoder), limits(), whole).prepare()
    assert capture.num_captures == whole.num_captures
    hidden = hidden_of(2)
    assert torch.equal(runner.run(0, hidden, batch_of([(0, 0), (1, 0)])), hidden)
    assert capture.num_replays == 0


def test_results_outlive_the_next_replay(decoder: Decoder) -> None:
    """Tokens that wait at a boundary keep their states while the segment runs for others."""
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), limits(), CallAgain())
    first = runner.run(0, hidden_of(1), batch_of([(0, 0)]))
    kept = first.clone()
    runner.run(0, hidden_of(1, seed=9), batch_of([(1, 0)]))
    assert torch.equal(first, kept)


def test_a_batch_that_runs_on_is_loaded_once_and_again_after_another(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = [new_cache(decoder) for _ in range(2)]
    called = EagerRunner(decoder, SEGMENTS, caches[0])
    replayed = GraphRunner(decoder, SEGMENTS, caches[1], limits(), CallAgain())
    replayed.prepare()
    one, other = batch_of([(0, 0), (1, 0)]), batch_of([(1, 1), (2, 0)])
    states = {0: hidden_of(2), 1: hidden_of(2, seed=9)}
    loads: list[bool] = []
    stack = torch.stack

    def counted(*tensors: Any, **options: Any) -> Tensor:
        loads.append("out" in options)
        return stack(*tensors, **options)

    monkeypatch.setattr(torch, "stack", counted)
    for name, index in ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1)):
        batch = other if name else one
        expected = called.run(index, states[name], batch)
        states[name] = replayed.run(index, states[name], batch)
        assert torch.equal(states[name], expected)
    assert sum(loads) == 4


def test_every_part_is_captured_once(decoder: Decoder) -> None:
    capture = CallAgain()
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), limits(), capture)
    runner.prepare()
    prepared = capture.num_captures
    # Segments and logits for four numbers of tokens; whole passes of up to four rows.
    assert prepared == 4 * (len(SEGMENTS) + 1) + 3
    for count in (1, 2, 3, 8):
        tokens = [(0, position) for position in range(count)]
        runner.run(0, hidden_of(count), batch_of(tokens))
        runner.logits(hidden_of(count))
    assert capture.num_captures == prepared
    assert capture.num_replays == 8


def test_every_width_of_tables_has_its_graph(decoder: Decoder) -> None:
    """Attention launches programs for all blocks of a table, so short rows want narrow tables."""
    wide = limits(max_positions=5000, token_counts=(1,))
    assert wide.widths == [64, 313], "256 would save next to nothing"
    assert limits(max_positions=8192).widths == [64, 256, 512]
    capture = CallAgain()
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), wide, capture)
    runner.prepare()
    captured = 2 * len(SEGMENTS) + 1 + 2
    assert capture.num_captures == captured
    batch = batch_of([(0, 0)])
    narrow = runner.run(0, hidden_of(1), batch)
    padded = replace(batch, block_tables=torch.nn.functional.pad(batch.block_tables, (0, 100)))
    assert torch.equal(runner.run(0, hidden_of(1), padded), narrow)
    assert capture.num_captures == captured


@pytest.mark.parametrize("too_many", ["tokens", "rows", "blocks"])
def test_what_is_too_large_is_called(decoder: Decoder, too_many: str) -> None:
    capture = CallAgain()
    small = limits()
    if too_many == "rows":
        small = limits(max_rows=2, token_counts=(1,))
    if too_many == "blocks":
        small = limits(max_positions=7 * BLOCK)
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), small, capture)
    called = EagerRunner(decoder, SEGMENTS, new_cache(decoder))
    count = 9 if too_many == "tokens" else 1
    tokens = [(0, position) for position in range(count)]
    hidden, batch = hidden_of(count), batch_of(tokens)
    assert torch.equal(runner.run(0, hidden, batch), called.run(0, hidden, batch))
    assert capture.num_captures == 0


def test_tokens_may_be_rows_of_their_own(decoder: Decoder) -> None:
    """As when costs are measured; otherwise they would be those of eager calls."""
    capture = CallAgain()
    few = limits(max_rows=1)
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), few, capture)
    called = EagerRunner(decoder, SEGMENTS, new_cache(decoder))
    tokens = [(row, 0) for row in range(3)]
    hidden, batch = hidden_of(3), batch_of(tokens)
    assert torch.equal(runner.run(0, hidden, batch), called.run(0, hidden, batch))
    assert capture.num_replays == 1


@pytest.mark.parametrize("refinement_size", [0, 32])
def test_heads_are_replayed(decoder: Decoder, refinement_size: int) -> None:
    capture = CallAgain()
    (head,) = random_heads(decoder, [2], 40, refinement_size).heads
    graph = HeadGraph(head, hidden_of(1), capture, (2, 4))
    graph.prepare()
    assert graph.exit_layer == 2
    # Five tokens are too many for a graph; several runs of several tokens have no graph.
    for lengths in ([1], [1, 1, 1], [3], [2], [1, 1], [1] * 5, [5], [2, 1]):
        inputs = (hidden_of(sum(lengths)), hidden_of(len(lengths), seed=1), lengths)
        for mine, expected in zip(graph(*inputs), head(*inputs), strict=True):
            assert torch.equal(mine, expected)
    assert (capture.num_captures, capture.num_replays) == (4, 5)


@pytest.mark.parametrize("makes_in_inference_mode", [False, True])
def test_heads_can_be_called_in_any_mode(decoder: Decoder, makes_in_inference_mode: bool) -> None:
    """Costs are measured outside inference mode; steps run in it."""
    runner = GraphRunner(decoder, SEGMENTS, new_cache(decoder), limits(), CallAgain())
    with torch.inference_mode(makes_in_inference_mode):
        heads = runner.heads(random_heads(decoder, [2], 40))
    hidden = hidden_of(3)
    with torch.no_grad():
        outside = heads.heads[0](hidden, hidden, [1, 1, 1])
    with torch.inference_mode():
        inside = heads.heads[0](hidden, hidden, [1, 1, 1])
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_a_states_estimate_outlives_the_next_replay(decoder: Decoder) -> None:
    (head,) = random_heads(decoder, [2], 40).heads
    graph = HeadGraph(head, hidden_of(1), CallAgain(), (2,))
    state, _, _ = graph(hidden_of(1), hidden_of(1), [1])
    kept = state.clone()
    graph(hidden_of(1, seed=5), hidden_of(1, seed=6), [1])
    assert torch.equal(state, kept)


@pytest.mark.parametrize("agreement", ["always", "sometimes"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_early_exits_on_graphs_change_no_token(
    decoder: Decoder, agreement: str, temperature: float
) -> None:
    prompts = {0: [5, 9, 2], 1: [3], 2: list(range(20, 40))}
    starts = [sequence_start(i, p, temperature=temperature) for i, p in prompts.items()]
    plain, _ = StepDriver(decoder, BLOCK).generate(starts, 24)
    script = {tuple(prompt): plain[i] for i, prompt in prompts.items()}
    drafter = ScriptedDrafter([2, 4], script, agreement, decoder.spec.vocab_size)  # type: ignore[arg-type]
    capture = CallAgain()

    def make_runner(cache: list[LayerCache]) -> GraphRunner:
        # The driver's pool has no spare block, but its first block belongs to no row.
        return GraphRunner(
            decoder, SEGMENTS, cache, limits(max_positions=1024, spare_slot=0), capture
        )

    driver = StepDriver(decoder, BLOCK, drafter=drafter, make_runner=make_runner)
    drafted, results = driver.generate(starts, 24)
    assert drafted == plain
    assert any(result.drafts for result in results)
    assert capture.num_replays > 0


def test_fitting() -> None:
    assert [fitting((1, 4), wanted) for wanted in (1, 2, 4, 5)] == [1, 4, 4, None]
    assert limits(max_positions=100).widths == [7]
    assert token_counts_for(6) == [1, 2, 4, 8]
    assert token_counts_for(384)[-1] == CAPTURED_COUNTS[-1]
