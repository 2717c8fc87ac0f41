"""The memory that a worker takes while loading, and what it refuses to load without."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_llama

from engine.config import (
    CacheConfig,
    EngineConfig,
    ExitsConfig,
    ModelConfig,
    SchedulerConfig,
)
from engine.errors import ModelLoadError
from engine.worker import memory
from engine.worker.worker import ModelWorker

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(model=ModelConfig(directory=directory, backend="torch", num_threads=1))


def num_blocks(config: EngineConfig, **cache: int) -> int:
    return ModelWorker(replace(config, cache=CacheConfig(**cache))).info.num_blocks


def test_a_later_worker_has_the_blocks_of_the_first_or_those_there_are(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 1 << 20
    first = num_blocks(config, kv_cache_memory_bytes=budget)
    assert num_blocks(config, kv_cache_memory_bytes=budget, num_blocks=first) == first
    monkeypatch.setattr(memory, "free_bytes", lambda _: budget)
    assert num_blocks(config, num_blocks=first) == first
    monkeypatch.setattr(memory, "free_bytes", lambda _: budget // 2)
    share = memory._CPU_SHARE / 2
    fewer = num_blocks(config, kv_cache_memory_bytes=budget, num_blocks=first)
    assert fewer == pytest.approx(first * share, abs=1)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)
    with pytest.raises(ModelLoadError, match="do not hold one block"):
        num_blocks(config, num_blocks=first)


def test_there_are_no_more_blocks_than_all_sequences_could_fill(config: EngineConfig) -> None:
    model = replace(config.model, max_model_len=250)
    small = replace(config, model=model, scheduler=SchedulerConfig(max_num_seqs=3))
    assert small.cache.block_size == 16
    assert num_blocks(small, kv_cache_memory_bytes=1 << 30) == 3 * 16


def test_what_the_system_could_free_counts_as_free() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("tests Linux only")
    free = memory.free_bytes(torch.device("cpu"))
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free <= total


def test_a_context_longer_than_the_models_is_refused(config: EngineConfig) -> None:
    small = replace(config, cache=CacheConfig(kv_cache_memory_bytes=1 << 20))
    shorter, longer = (
        replace(small, model=replace(config.model, max_model_len=length)) for length in (255, 257)
    )
    assert ModelWorker(shorter).info.max_model_len == 255
    with pytest.raises(ModelLoadError, match=r"--max-model-len 257: .* 256"):
        ModelWorker(longer)


def test_heads_that_are_not_there_cannot_learn(config: EngineConfig) -> None:
    with pytest.raises(ModelLoadError, match="--learn-heads: no exit heads"):
        ModelWorker(replace(config, exits=ExitsConfig(learn=True)))


def test_without_second_candidates_no_slot_is_theirs(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[int]] = []
    monkeypatch.setattr(
        "engine.worker.worker.DecodeStep",
        lambda *_, **options: given.append(list(options["spare_slots"])),
    )
    small = replace(config, cache=CacheConfig(kv_cache_memory_bytes=1 << 20))
    num_slots = ModelWorker(small).info.num_blocks * small.cache.block_size
    ModelWorker(replace(small, exits=ExitsConfig(alternates=False)))
    # The first slot of the block is where graphs write padding.
    assert given == [list(range(num_slots + 1, num_slots + small.cache.block_size)), []]
