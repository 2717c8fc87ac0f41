"""Texts generated in large batches are those of the engine, whatever shares the device."""

from pathlib import Path

import pytest
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_llama

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.offline import OfflineEngine
from engine.request import FinishReason, GenerationRequest, SamplingParams
from engine.worker.worker import ModelWorker
from training import generate as generating
from training import gpu
from training.collect import collect, collect_held
from training.device_generator import DeviceGenerator
from training.generate import GenerationOptions
from training.generations import HeldOut, num_output_tokens, read_generations
from training.pipeline import load_decoder
from training.prompts import Prompt
from training.questions import Ask, Question
from training.states import LAST, read_shards

pytestmark = pytest.mark.torch

MAX_LEN = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_character_tokenizer(directory)
    return ModelConfig(directory=directory, device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def decoder(model: ModelConfig) -> Decoder:
    return load_decoder(model)


def asks() -> list[Ask]:
    """Return prompts of many lengths, greedy and sampled."""
    return [
        Ask(
            Question("qa", [], [1 + (seed * 7 + place) % 90 for place in range(1 + seed % 23)]),
            temperature=(0.0, 0.8, 1.0)[seed % 3],
            seed=seed,
            max_new_tokens=2 + seed % 38,
        )
        for seed in range(40)
    ]


def test_its_texts_are_the_engines(model: ModelConfig, decoder: Decoder) -> None:
    config = EngineConfig(
        model=model,
        cache=CacheConfig(kv_cache_memory_bytes=1 << 24),
        exits=ExitsConfig(enabled=False, max_draft_tokens=0),
        worker="inline",
    )
    requests = [
        GenerationRequest(
            request_id=str(ask.seed),
            prompt_token_ids=tuple(ask.question.prompt_ids),
            sampling=SamplingParams(
                temperature=ask.temperature, seed=ask.seed, max_tokens=ask.max_new_tokens
            ),
        )
        for ask in asks()
    ]
    results = OfflineEngine(config, ModelWorker(config, decoder=decoder)).generate(requests)
    expected = {
        ask.seed: (list(result.token_ids), result.finish_reason is FinishReason.STOP)
        for ask, result in zip(asks(), results, strict=True)
    }
    assert {is_over for _, is_over in expected.values()} == {False, True}

    waiting = asks()
    # With few rows, and blocks for hardly two of the longest texts, they have to wait.
    per_token = 2 * decoder.spec.num_layers * decoder.spec.num_kv_heads * decoder.spec.head_size * 4
    generator = DeviceGenerator(decoder, max_rows=7, max_len=MAX_LEN, max_bytes=9 * 16 * per_token)
    found = {}
    for ended in generator.answers(lambda: waiting.pop(0) if waiting else None):
        for answer in ended:
            assert answer.ask.seed not in found
            found[answer.ask.seed] = (answer.token_ids, answer.is_over)
    assert found == expected


def test_too_little_memory_is_named(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="--memory-gib"):
        DeviceGenerator(decoder, max_rows=1, max_len=MAX_LEN, max_bytes=1000)


def test_a_run_on_a_device_has_as_many_tokens_as_asked_for_and_goes_on(
    model: ModelConfig, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "_DEVICE_BATCH", 5)
    monkeypatch.setattr(gpu, "is_used", lambda decoder: True)
    prompts = [Prompt("qa", f"number {number}?") for number in range(30)]

    def run(num_tokens: int) -> None:
        options = GenerationOptions(
            model=model, work=tmp_path, num_tokens=num_tokens, max_new_tokens=6, max_bytes=1 << 24
        )
        generating.generate(options, prompts, [2], decoder)

    run(200)
    path = tmp_path / "generations.jsonl"
    first = path.read_text()
    assert 200 <= num_output_tokens(read_generations(path)) < 300
    run(700)
    rows = read_generations(path)
    assert path.read_text().startswith(first)
    assert 700 <= num_output_tokens(rows) < 800
    assert {row.temperature for row in rows} == {0.0, 0.5, 0.8, 1.0}
    held_out = HeldOut()
    kept = {tuple(row.prompt_ids) for row in rows if held_out.takes(row)}
    held_out = HeldOut()
    others = {tuple(row.prompt_ids) for row in rows if not held_out.takes(row)}
    assert kept, "some are held out"
    assert not kept & others, "with all their answers"

    held = collect_held(decoder, rows, [2, 4]).at(4)
    paths = collect(decoder, rows, [2, 4], tmp_path / "hidden")
    expected = read_shards([(shard[LAST], shard[4]) for shard in paths])
    [states] = held.groups()
    for name in ("exit", "last", "log_normalizer", "target", "is_first"):
        assert getattr(states, name).equal(getattr(expected, name)), name
