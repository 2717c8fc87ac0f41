import pytest
from tiny_model import write_tiny_llama

from benchmarks.contestants import EngineContestant, TransformersContestant
from engine.config import CacheConfig, EngineConfig, ModelConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions

pytestmark = pytest.mark.torch

PROMPTS = [(5, 6, 7, 8), (9, 10)]
LENGTH = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(directory):
    model = ModelConfig(directory=directory, device="cpu", backend="torch", num_threads=1)
    cache = CacheConfig(kv_cache_memory_bytes=1 << 20)
    return OfflineEngine(EngineConfig(model=model, cache=cache, worker="inline"))


def test_the_engine_and_transformers_generate_the_same(directory, engine):
    ours = EngineContestant(engine, EarlyExitOptions(enabled=False), **LENGTH)
    theirs = TransformersContestant(directory, device="cpu", dtype="float32", **LENGTH)

    together = ours.run(PROMPTS, [0, 1])
    alone = [theirs.run([prompt], [0]) for prompt in PROMPTS]

    assert together.token_ids == tuple(outcome.token_ids[0] for outcome in alone)
    assert all(len(ids) == LENGTH["max_tokens"] for ids in together.token_ids)


def test_the_first_token_comes_before_the_last(directory, engine):
    contestants = [
        EngineContestant(engine, EarlyExitOptions(), **LENGTH),
        TransformersContestant(directory, device="cpu", dtype="float32", **LENGTH),
    ]

    for contestant in contestants:
        outcome = contestant.run(PROMPTS[:1], [0])
        assert 0 < outcome.first_token_s < outcome.duration_s


def test_a_seed_makes_sampling_repeatable(engine):
    contestant = EngineContestant(
        engine, EarlyExitOptions(enabled=False), max_tokens=8, temperature=1.0
    )

    first, again, other = (contestant.run(PROMPTS[:1], [seed]) for seed in (1, 1, 2))

    assert first.token_ids == again.token_ids != other.token_ids
