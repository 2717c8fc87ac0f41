"""Generations of a tiny model: lengths, temperatures, second turns, and resumed runs."""

from collections import Counter
from pathlib import Path

import pytest
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_llama
from transformers import AutoTokenizer

from engine.config import ModelConfig
from training import generate as generating
from training import questions
from training.generate import GenerationOptions, generate
from training.generations import num_output_tokens, read_generations
from training.prompts import FOLLOW_UPS, Prompt

pytestmark = pytest.mark.torch

TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}|{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
PROMPTS = [Prompt("qa", f"number {number}?") for number in range(24)]
MAX_NEW = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_character_tokenizer(directory)
    return ModelConfig(directory=directory, device="cpu", num_threads=1)


@pytest.fixture
def chat_model(model: ModelConfig) -> ModelConfig:
    tokenizer = AutoTokenizer.from_pretrained(str(model.directory))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(model.directory))
    return model


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "_GROUP", 4)
    monkeypatch.setattr(questions, "_MOST_TIMES", 2)


def options(model: ModelConfig, work: Path, num_tokens: int = 10_000, max_new: int = MAX_NEW):
    return GenerationOptions(
        model=model, work=work, num_tokens=num_tokens, max_new_tokens=max_new, max_bytes=1 << 24
    )


def test_lengths_and_temperatures_vary_and_a_second_run_goes_on(
    model: ModelConfig, tmp_path: Path
) -> None:
    path = tmp_path / "generations.jsonl"
    generate(options(model, tmp_path, 60), PROMPTS, [])
    first = path.read_text()
    assert num_output_tokens(read_generations(path)) >= 60
    generate(options(model, tmp_path, 60), PROMPTS, [])
    assert path.read_text() == first, "enough is there"

    generate(options(model, tmp_path), PROMPTS, [])
    rows = read_generations(path)
    assert path.read_text().startswith(first)
    greedy = [tuple(row.prompt_ids) for row in rows if row.temperature == 0.0]
    assert len(set(greedy)) == len(greedy), "no text is made twice"
    times = Counter(tuple(row.prompt_ids) for row in rows)
    assert len(times) > len(PROMPTS) - 3, "but for answers of one token"
    assert max(times.values()) == 2
    assert {row.temperature for row in rows} == {0.0, 0.5, 0.8, 1.0}
    longest = max(len(row.output_ids) for row in rows)
    assert MAX_NEW < longest <= 3 * MAX_NEW


def test_some_answers_that_ended_get_a_second_question(
    chat_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_SECOND_TURN_EVERY", 1)
    path = tmp_path / "generations.jsonl"
    prompts = [
        Prompt("chat", prompt.text) for prompt in PROMPTS
    ]  # a task that is itself called "chat"
    generate(options(chat_model, tmp_path, max_new=40), prompts, [])
    tokenizer = AutoTokenizer.from_pretrained(str(chat_model.directory))
    texts = [tokenizer.decode(row.prompt_ids).replace(" ", "") for row in read_generations(path)]
    seconds = [text for text in texts if text.count("u:") == 2]
    assert 0 < len(seconds) <= 2 * len(PROMPTS) < len(texts)
    assert all(text.count("u:") <= 2 for text in texts)
    asked = [question.replace(" ", "") for question in FOLLOW_UPS]
    assert all(any(f"u:{question}|" in text for question in asked) for text in seconds)


def test_a_context_without_room_for_a_prompt_is_named(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--max-new-tokens"):
        generate(options(model, tmp_path, max_new=100), PROMPTS, [])


def test_chats_that_grow_too_long_end_there(
    chat_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_SECOND_TURN_EVERY", 1)
    monkeypatch.setattr(questions, "LONGEST_PROMPT", 20)
    path = tmp_path / "generations.jsonl"
    generate(options(chat_model, tmp_path, max_new=40), PROMPTS, [])
    assert {row.task for row in read_generations(path)} == {"qa"}
