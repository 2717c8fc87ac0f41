"""The contestants: our engine with and without early exits, and transformers' `generate`.

Each generates the same number of tokens from the same prompts, and times it.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Outcome
from engine.offline import OfflineEngine
from engine.pauses import sparing_what_is_loaded
from engine.request import DraftFigures, EarlyExitOptions, GenerationRequest, SamplingParams
from engine.scheduler import Committed
from training.engines import Clock, TimedEngine


class EngineContestant:
    """Our engine, run through the scheduler as in the server."""

    def __init__(
        self,
        engine: OfflineEngine,
        early_exit: EarlyExitOptions,
        *,
        max_tokens: int,
        temperature: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._early_exit = early_exit
        self._max_tokens = max_tokens
        self._temperature = temperature

    @classmethod
    def asked(
        cls, args: argparse.Namespace, timed: TimedEngine, early_exit: EarlyExitOptions
    ) -> "EngineContestant":
        """Return the contestant that a benchmark's flags describe."""
        return cls(
            timed.engine,
            early_exit,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            clock=timed.clock,
        )

    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        at_once: int | None = None,
    ) -> Outcome:
        """See `Contestant.run`."""
        requests = [
            GenerationRequest(
                request_id=str(index),
                prompt_token_ids=prompt,
                sampling=SamplingParams(
                    temperature=self._temperature,
                    seed=seed,
                    max_tokens=self._max_tokens,
                    ignore_eos=True,
                ),
                early_exit=self._early_exit,
            )
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        watch = _FirstTokenWatch(self._clock)
        with sparing_what_is_loaded():
            results = self._engine.generate(requests, watch.on_step, max_num_seqs=at_once)
        return watch.outcome(
            tuple(result.token_ids for result in results),
            tuple(result.draft_figures for result in results),
        )


class TransformersContestant:
    """transformers' `generate`, one prompt at a time, in the engine's data type."""

    def __init__(
        self,
        directory: Path,
        *,
        device: str,
        dtype: str,
        max_tokens: int,
        temperature: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(directory), dtype=getattr(torch, dtype)
        )
        self._clock = clock
        self._model = model.to(device).eval()
        self._device = device
        # A config of our own, so that no default of the checkpoint (penalties, top-p) applies.
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
        self._model.generation_config = GenerationConfig(
            max_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0, **sampling
        )

    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        at_once: int | None = None,
    ) -> Outcome:
        """Generate for the only prompt."""
        ((prompt,), (seed,)) = prompts, seeds
        torch.manual_seed(seed)
        ids = torch.tensor([prompt], device=self._device)
        watch = _FirstTokenWatch(self._clock)

        def on_token(*_: Any, **__: Any) -> torch.Tensor:
            watch.on_tokens(1)
            return torch.zeros(1, dtype=torch.bool, device=self._device)

        output = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), stopping_criteria=[on_token]
        )
        return watch.outcome((tuple(output[0, len(prompt) :].tolist()),), ())


class _FirstTokenWatch:
    """Times one run, which begins when this is constructed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock()
        self._first_token_s: float | None = None

    def on_step(self, committed: Sequence[Committed]) -> None:
        self.on_tokens(sum(item.num_new_tokens for item in committed))

    def on_tokens(self, num_tokens: int) -> None:
        if self._first_token_s is None and num_tokens:
            self._first_token_s = self._clock() - self._started

    def outcome(
        self, token_ids: tuple[tuple[int, ...], ...], figures: tuple[DraftFigures, ...]
    ) -> Outcome:
        """Stop the watch. The tokens are on the host by now, so the device is done as well."""
        duration_s = self._clock() - self._started
        first_token_s = duration_s if self._first_token_s is None else self._first_token_s
        return Outcome(
            token_ids=token_ids, duration_s=duration_s, first_token_s=first_token_s, figures=figures
        )
