"""With a KV cache for a tenth of the requests, all finish with the output they have alone."""

import pytest
from default_model import default_model_directory

from engine.checkpoint import find_heads
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig
from engine.offline import OfflineEngine
from engine.request import GenerationRequest, SamplingParams

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

BLOCK = 16
NUM_REQUESTS, NUM_PROMPT, NUM_TOKENS = 15, 10, 9  # a request begins with 1 block and needs 2


def ask(number: int) -> GenerationRequest:
    return GenerationRequest(
        request_id=str(number),
        prompt_token_ids=tuple(
            100 + (31 * number + 7 * place) % 150 for place in range(NUM_PROMPT)
        ),
        sampling=SamplingParams(
            temperature=0.8 * (number % 2),
            seed=number,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
            num_logprobs=1,
        ),
    )


def test_a_tenth_of_the_blocks_gives_every_request_the_bits_it_has_alone() -> None:
    directory = default_model_directory()
    requests = [ask(number) for number in range(NUM_REQUESTS)]
    demand = NUM_REQUESTS * -(-(NUM_PROMPT + NUM_TOKENS) // BLOCK)
    engine = OfflineEngine(
        EngineConfig(
            model=ModelConfig(directory=directory, device="cpu"),
            cache=CacheConfig(block_size=BLOCK, num_blocks=demand // 10),
            exits=ExitsConfig(heads=find_heads("smollm2-135m-instruct", directory)),
        )
    )
    alone = [engine.generate([request])[0] for request in requests]
    together = engine.generate(requests)
    for one, another in zip(alone, together, strict=True):
        assert len(another.token_ids) == NUM_TOKENS
        assert (another.token_ids, another.logprobs) == (one.token_ids, one.logprobs)
    assert sum(result.num_preemptions for result in together) > 0
