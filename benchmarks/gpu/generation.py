"""Runs our engine and transformers, and times decoding from the first token to the last."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.offline import GenerationResult, OfflineEngine
from engine.pauses import sparing_what_is_loaded
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.scheduler import Committed

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The output of a run, and how fast it decoded."""

    token_ids: tuple[tuple[int, ...], ...]
    num_timed: int  # tokens after all prompts had their first one
    duration_s: float  # seconds that these took

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all prompts together, prefill not included."""
        return self.num_timed / self.duration_s if self.duration_s else 0.0


def generate(
    engine: OfflineEngine,
    prompts: Sequence[Prompt],
    num_tokens: int,
    *,
    early_exit: bool,
    temperature: float = 0.0,
    **options: Any,
) -> Timed:
    """Run our engine on all prompts at once, through the scheduler as in the server.

    Args:
        options: Further fields of `SamplingParams`.
    """
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=prompt,
            sampling=SamplingParams(
                temperature=temperature,
                seed=index,
                max_tokens=num_tokens,
                ignore_eos=True,
                **options,
            ),
            early_exit=EarlyExitOptions(enabled=early_exit),
        )
        for index, prompt in enumerate(prompts)
    ]
    # Timed once every prompt has its first token: from then on all steps only decode.
    watch = _Watch(len(prompts))
    results: list[GenerationResult]
    with sparing_what_is_loaded():
        results = engine.generate(requests, on_step=watch.on_step)
    return Timed(
        token_ids=tuple(result.token_ids for result in results),
        num_timed=watch.num_timed,
        duration_s=watch.duration_s,
    )


class _Watch:
    """Counts and times tokens once every prompt has its first one."""

    def __init__(self, num_prompts: int) -> None:
        self._missing = num_prompts
        self._started = self._last = 0.0
        self.num_timed = 0

    @property
    def duration_s(self) -> float:
        return self._last - self._started

    def on_step(self, committed: Sequence[Committed]) -> None:
        self._last = time.perf_counter()
        if self._missing > 0:
            self._missing -= sum(
                item.sequence.num_output_tokens == item.num_new_tokens > 0 for item in committed
            )
            self._started = self._last
        else:
            self.num_timed += sum(item.num_new_tokens for item in committed)


def generate_with_transformers(
    model: Any,
    prompt: Prompt,
    num_tokens: int,
    device: torch.device,
    *,
    num_untimed: int = 0,
    **options: Any,
) -> Timed:
    """Run transformers' `generate` on one prompt, greedy.

    Args:
        num_untimed: First tokens that are not timed: compiled code records its graphs anew for
            every cache.
        options: Further fields of `GenerationConfig`.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    times: list[float] = []

    def on_token(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if device.type == "cuda" and len(times) in (num_untimed, num_tokens - 1):
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=device)

    ids = torch.tensor([prompt], device=device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        stopping_criteria=[on_token],
    )
    tokens = tuple(output[0, len(prompt) :].tolist())
    return Timed(
        token_ids=(tokens,),
        num_timed=len(times) - 1 - num_untimed,
        duration_s=times[-1] - times[num_untimed],
    )
