"""The KV cache gets the memory that weights and the largest step leave."""

from pathlib import Path

import pytest
from tiny_model import load_tiny, write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ModelConfig
from engine.errors import ModelLoadError
from engine.model.ops.torch_ops import TorchOps
from engine.worker.memory import cpu_budget, gpu_budget, run_largest
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch

GIB = 2**30


def test_a_gpu_keeps_its_share_and_what_is_in_use() -> None:
    assert gpu_budget(0.9, num_free=60 * GIB, num_total=80 * GIB) == 52 * GIB


def test_a_gpu_that_is_full_is_refused_by_name() -> None:
    with pytest.raises(ModelLoadError, match=r"--gpu-memory-utilization 0\.2.*other processes"):
        gpu_budget(0.2, num_free=60 * GIB, num_total=80 * GIB)


def test_a_cpu_gives_a_part_of_what_is_free() -> None:
    assert cpu_budget() > 0


def test_the_largest_step_runs(tmp_path: Path) -> None:
    run_largest(load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu")), 40, 9)


def test_a_cpu_refuses_what_only_a_gpu_can_be_told(tmp_path: Path) -> None:
    model = ModelConfig(directory=write_tiny_llama(tmp_path), backend="torch", device="cpu")
    cache = CacheConfig(gpu_memory_utilization=0.5)
    with pytest.raises(ModelLoadError, match="--gpu-memory-utilization"):
        ModelWorker(EngineConfig(model=model, cache=cache))
