"""The KV cache gets the memory that weights and the largest step leave."""

from pathlib import Path

import pytest
import torch
from tiny_model import load_tiny, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ModelConfig
from engine.errors import ModelLoadError
from engine.model.ops.torch_ops import TorchOps
from engine.worker.memory import cpu_budget, free_bytes, gpu_budget, run_largest
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

GIB = 2**30


def test_a_gpu_keeps_its_share_and_what_is_in_use() -> None:
    assert gpu_budget(0.9, num_free=60 * GIB, num_total=80 * GIB) == 52 * GIB


def test_a_gpu_that_is_full_is_refused_by_name() -> None:
    with pytest.raises(ModelLoadError, match=r"--gpu-memory-utilization 0\.2.*other processes"):
        gpu_budget(0.2, num_free=60 * GIB, num_total=80 * GIB)


def test_a_gpu_with_nothing_left_is_full() -> None:
    with pytest.raises(ModelLoadError, match="nothing is left"):
        gpu_budget(0.5, num_free=40 * GIB, num_total=80 * GIB)


def test_a_cpu_gives_a_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the system would reclaim is free."""
    facts = "MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda _: facts)
    assert free_bytes(torch.device("cpu")) == 400 * 1024
    assert cpu_budget() == 100 * 1024


def test_the_largest_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    sizes: list[int] = []
    logits = decoder.logits
    monkeypatch.setattr(decoder, "logits", lambda h: (sizes.append(len(h)), logits(h))[1])
    run_largest(decoder, 40, 9)
    assert sizes == [9]


def test_a_cpu_refuses_what_only_a_gpu_can_be_told(tmp_path: Path) -> None:
    model = ModelConfig(directory=write_tiny_llama(tmp_path), backend="torch", device="cpu")
    cache = CacheConfig(gpu_memory_utilization=0.5)
    with pytest.raises(ModelLoadError, match="--gpu-memory-utilization"):
        ModelWorker(EngineConfig(model=model, cache=cache))
