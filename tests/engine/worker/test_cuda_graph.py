"""On a GPU, graphs give the same bits as eager calls, and early exits change no token."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_backend import cuda_ops, needs_gpu, needs_kernels
from tiny_model import (
    VOCAB,
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)

from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.config import CacheConfig, EngineConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.model.exact_rows import uneven_counts
from engine.model.ops.interface import LayerCache
from engine.worker.cuda_graph import CudaCapture
from engine.worker.decode_step import split_layers
from engine.worker.drafter import Drafter
from engine.worker.graph_runner import BatchLimits, GraphRunner
from engine.worker.head_graph import HeadGraph
from engine.worker.worker import ModelWorker

pytestmark = [pytest.mark.torch, pytest.mark.gpu, needs_gpu, needs_kernels]

BLOCK = 16
EXITS = [2, 4]
PROMPTS = {0: [5, 9, 2], 1: [3], 2: list(range(20, 40))}
SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 0.8},
    "processors": {"temperature": 0.7, "repetition_penalty": 1.3, "top_p": 0.9, "top_k": 20},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def decoder(directory: Path) -> Decoder:
    return load_tiny(directory, cuda_ops(torch.bfloat16))


def driver(decoder: Decoder, drafter: Drafter | None, *, graphs: bool) -> StepDriver:
    exits = [] if drafter is None else EXITS

    def make_runner(cache: Sequence[LayerCache]) -> GraphRunner:
        limits = BatchLimits(
            max_rows=4,
            max_positions=1024,
            block_size=BLOCK,
            spare_slot=0,  # the driver's first block belongs to no row
            token_counts=(1, 2, 4, 8),
        )
        segments = split_layers(decoder.spec.num_layers, exits)
        runner = GraphRunner(decoder, segments, cache, limits, CudaCapture())
        runner.prepare()
        return runner

    return StepDriver(decoder, BLOCK, drafter, make_runner=make_runner if graphs else None)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_exits_and_graphs_change_no_token(decoder: Decoder, sampling: str) -> None:
    starts = [sequence_start(i, p, **SAMPLING[sampling]) for i, p in PROMPTS.items()]
    plain, _ = driver(decoder, None, graphs=False).generate(starts, 24)
    assert driver(decoder, None, graphs=True).generate(starts, 24)[0] == plain
    script = {tuple(prompt): plain[i] for i, prompt in PROMPTS.items()}
    agreements: tuple[Agreement, ...] = ("always", "sometimes", "never")
    for agreement in agreements:
        drafter = ScriptedDrafter(EXITS, script, agreement, decoder.spec.vocab_size)
        drafted, results = driver(decoder, drafter, graphs=True).generate(starts, 24)
        assert drafted == plain
        assert any(result.drafts for result in results)


def head_drafter(decoder: Decoder) -> Drafter:
    """Captured heads that draft whatever they expect."""
    heads = random_heads(decoder, EXITS, VOCAB - 10, 32)
    like = torch.zeros(1, decoder.spec.hidden_size, dtype=torch.bfloat16, device="cuda")
    graphs = [HeadGraph(head, like, CudaCapture(), (1, 2, 4, 8)) for head in heads.heads]
    for graph in graphs:
        graph.prepare()
    return policy_drafter(decoder, replace(heads, heads=graphs), threshold=0.0)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_captured_heads_change_no_token(decoder: Decoder, sampling: str) -> None:
    starts = [sequence_start(i, p, **SAMPLING[sampling]) for i, p in PROMPTS.items()]
    plain, _ = driver(decoder, None, graphs=False).generate(starts, 24)
    drafted, results = driver(decoder, head_drafter(decoder), graphs=True).generate(starts, 24)
    assert drafted == plain
    assert any(result.drafts for result in results)


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [2], [3], [8], [9], [2, 1]], ids=str)
def test_a_captured_head_gives_what_the_head_does(decoder: Decoder, lengths: list[int]) -> None:
    (head,) = random_heads(decoder, [2], 40, 32).heads
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, decoder.spec.hidden_size, generator=generator)
    hidden, previous = states.to("cuda", torch.bfloat16)
    graph = HeadGraph(head, hidden[:1], CudaCapture(), (1, 2, 4, 8))
    inputs = (hidden[: sum(lengths)], previous[: len(lengths)], lengths)
    for _ in range(2):
        with torch.inference_mode():
            for mine, expected in zip(graph(*inputs), head(*inputs), strict=True):
                torch.testing.assert_close(mine, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("has_heads", [False, True])
def test_a_step_waits_for_the_device_only_to_read_its_tokens(
    decoder: Decoder, has_heads: bool
) -> None:
    """Nothing it sends, and no processor, makes the host wait. It waits for what it reads with an
    event, which this check does not count.
    """
    options = SAMPLING["processors"] | {"logit_bias": {3: 1.0}, "frequency_penalty": 0.3}
    starts = [sequence_start(i, p, **options) for i, p in PROMPTS.items()]
    plain, _ = driver(decoder, None, graphs=False).generate(starts, 12)
    script = {tuple(prompt): plain[i] for i, prompt in PROMPTS.items()}
    drafter: Drafter = ScriptedDrafter(EXITS, script, "sometimes", decoder.spec.vocab_size)
    if has_heads:
        drafter = head_drafter(decoder)
    steps = driver(decoder, drafter, graphs=True)
    steps.generate(starts, 12)  # compiles and captures
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps.generate(starts, 12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing" in str(w.message)]
    assert {Path(wait.filename).name for wait in waits} == set()


def test_rows_are_exact(decoder: Decoder) -> None:
    assert uneven_counts(decoder) == []


def test_a_worker_loads_and_takes_its_share_of_memory(directory: Path) -> None:
    model = ModelConfig(directory=directory, device="cuda")
    worker = ModelWorker(EngineConfig(model=model, cache=CacheConfig(gpu_memory_utilization=0.5)))
    assert worker.info.backend == "cuda"
    assert worker.info.dtype == "bfloat16"
    assert worker.info.num_blocks > 0
