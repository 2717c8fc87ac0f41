"""The default model against transformers: the same greedy tokens, through the whole engine."""

from typing import Any

import pytest
import torch
from default_model import default_model_directory
from full_size import FULL_SIZE

from engine.config import EngineConfig, ExitsConfig, ModelConfig
from engine.offline import OfflineEngine
from engine.request import GenerationRequest, SamplingParams
from engine.tokenizer import load_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

NUM_TOKENS = 64 if FULL_SIZE else 32
NEAR_TIE = 1e-3  # logits this close may be ordered either way by two correct implementations

PROMPTS = (
    "Why is the sky blue at noon and red in the evening?",
    "Write a haiku about a snail that is late.",
    "What is 17 + 25? Explain step by step.",
    "Translate 'good morning, my friend' into French and Spanish.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List three differences between cats and dogs.",
    "Summarize the story of Little Red Riding Hood in two sentences.",
    "Who wrote Romeo and Juliet, and when?",
    "Give me a recipe for pancakes with exact amounts.",
    "How do I reverse a list in JavaScript?",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Write a polite email asking a colleague for a report by Friday.",
    "What are the primary colors?",
    "Explain photosynthesis to a ten-year-old.",
    "Rewrite this in the past tense: 'She walks to the market and buys bread.'",
    "Name the planets of the solar system in order from the sun.",
    "Is a tomato a fruit or a vegetable?",
    "Write a SQL query that counts the orders of each customer.",
    "\u4f60\u597d! \u00bfQu\u00e9 significa '\u4e16\u754c'? \U0001f30d",
    "Tell me a joke about computers.",
)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(default_model_directory())
    return [tokenizer.apply_chat_template([{"role": "user", "content": p}]) for p in PROMPTS]


@pytest.fixture(scope="module")
def outputs(prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Greedy output of our engine, without exits, all prompts at once."""
    config = EngineConfig(
        model=ModelConfig(directory=default_model_directory(), device="cpu", dtype="float32"),
        exits=ExitsConfig(enabled=False),
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    requests = [
        GenerationRequest(request_id=str(i), prompt_token_ids=tuple(ids), sampling=sampling)
        for i, ids in enumerate(prompts)
    ]
    return [result.token_ids for result in OfflineEngine(config).generate(requests)]


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(default_model_directory(), dtype=torch.float32)


def test_greedy_output_equals_transformers(
    prompts: list[list[int]], outputs: list[tuple[int, ...]], reference: Any
) -> None:
    """Each token is transformers' choice after the same tokens: greedy decoding, by induction."""
    num_near_ties = 0
    for text, prompt, output in zip(PROMPTS, prompts, outputs, strict=True):
        assert len(output) == NUM_TOKENS
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.tensor(output)
        margins = logits.max(-1).values - logits[torch.arange(NUM_TOKENS), chosen]
        assert margins.max() < NEAR_TIE, f"{text}: differs by {margins.max():.6f}"
        num_near_ties += int((margins > 0).sum())
    assert num_near_ties <= 2


def test_short_answers_equal_generate(
    prompts: list[list[int]], outputs: list[tuple[int, ...]], reference: Any
) -> None:
    """Compares with `generate` itself, which uses its cache, on the three shortest prompts."""
    for prompt, output in sorted(zip(prompts, outputs, strict=True), key=lambda p: len(p[0]))[:3]:
        generated = reference.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False
        )
        ids = generated[0, len(prompt) :].tolist()  # shorter if it ends by itself
        assert list(output[: len(ids)]) == ids
