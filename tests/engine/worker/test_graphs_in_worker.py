"""A worker that captures its parts, from start-up to the last token. A replay calls the part again,
and plain torch stands in for the GPU's kernels.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import make_request
from learning import change_heads_at_every_trial

from benchmarks.gpu.shapes import TINY, random_decoder, write_heads
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.ops.torch_ops import TorchOps
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions
from engine.worker import worker as worker_module
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch


class Capture:
    """Counts its calls; a replay runs the part again."""

    count = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        Capture.count += 1
        run()
        return run


@pytest.mark.parametrize("is_queued", [False, True])
def test_heads_policy_and_graphs_together(
    is_queued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CudaCapture", Capture)
    monkeypatch.setattr(ModelWorker, "_is_queued", is_queued)  # costs are those of whole steps
    directory = TINY.write(tmp_path / "model")
    ops = TorchOps("cpu")
    ops.name = "cuda"  # a worker captures graphs by this name
    decoder = random_decoder(TINY, directory, ops)
    config = EngineConfig(
        model=ModelConfig(directory=directory, device="cpu", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
        scheduler=SchedulerConfig(max_num_seqs=2),
        exits=ExitsConfig(
            heads=write_heads(TINY, [2, 4], tmp_path / "heads"), threshold=0.0, lookup=False
        ),
    )
    engine = OfflineEngine(config, ModelWorker(config, decoder=decoder))
    captured = Capture.count
    assert captured > 0
    requests = [make_request(i, temperature=i / 2, max_tokens=6, ignore_eos=True) for i in (0, 1)]
    plain = [replace(r, early_exit=EarlyExitOptions(enabled=False)) for r in requests]

    drafted = engine.generate(requests)

    assert [r.token_ids for r in drafted] == [r.token_ids for r in engine.generate(plain)]
    assert sum(r.draft_figures.num_draft_tokens for r in drafted) > 0
    assert Capture.count == captured, "everything was captured at the start"


def test_captured_heads_learn_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CudaCapture", Capture)
    change_heads_at_every_trial(monkeypatch)
    directory = TINY.write(tmp_path / "model")
    ops = TorchOps("cpu")
    ops.name = "cuda"
    config = EngineConfig(
        model=ModelConfig(directory=directory, device="cpu", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20),
        scheduler=SchedulerConfig(max_num_seqs=2),
        exits=ExitsConfig(
            heads=write_heads(TINY, [2], tmp_path / "heads"),
            threshold=0.0,
            lookup=False,
            learn=True,
            learn_share=0.9,
            learn_directory=tmp_path / "learned",
        ),
    )
    worker = ModelWorker(config, decoder=random_decoder(TINY, directory, ops))
    captured = Capture.count
    requests = [make_request(i, temperature=i / 2, max_tokens=24, ignore_eos=True) for i in (0, 1)]
    plain = [replace(r, early_exit=EarlyExitOptions(enabled=False)) for r in requests]

    drafted = OfflineEngine(config, worker).generate(requests)

    worker.close()
    assert list((tmp_path / "learned").rglob("heads.safetensors")), "nothing was learned"
    assert Capture.count == captured, "new weights need no new graphs"
    expected = OfflineEngine(config, worker).generate(plain)
    assert [r.token_ids for r in drafted] == [r.token_ids for r in expected]
