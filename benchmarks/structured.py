"""`adadecode bench structured`: do answers follow their schema, and do early exits change any?

Every schema is requested with several seeds, once with early exits off and once with a fixed
threshold, which drafts whether it pays or not. The exit status is 1 if an answer does not follow
its schema, does not end, or differs.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, print_facts
from benchmarks.model_flags import drafting_config, required_heads
from benchmarks.prompts import encode_prompts
from benchmarks.schemas import TASKS, Task
from engine.checkpoint import resolve_model
from engine.offline import GenerationResult, OfflineEngine
from engine.request import (
    EarlyExitOptions,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Structure,
)
from training.progress import ProgressReport
from training.prompts import Prompt

_BATCH = 8
_THRESHOLD = 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one schema's requests."""

    name: str
    num_requests: int
    num_valid: int
    num_identical: int  # tokens and log-probabilities, to the bit
    num_tokens: int
    num_drafts: int
    num_accepted: int

    @property
    def is_right(self) -> bool:
        """Whether all answers are valid and unchanged."""
        return self.num_valid == self.num_identical == self.num_requests

    def __str__(self) -> str:
        return (
            f"{self.name:<12} {self.num_requests:>4} requests  {self.num_valid:>4} valid  "
            f"{self.num_identical:>4} identical  {self.num_tokens:>6} tokens  "
            f"{self.num_drafts:>6} drafts  {self.num_accepted:>6} accepted"
        )


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when nothing can be validated here, or there are no exit heads.
        EngineError: when the model cannot be loaded.
    """
    directory = resolve_model(args.model)
    heads = required_heads(args, directory)
    _validator({})
    tasks = TASKS[args.skip_schemas :][: args.num_schemas]
    print_facts(describe_machine() | {"model": args.model, "temperature": str(args.temperature)})
    engine = OfflineEngine(drafting_config(args, directory, heads, _BATCH))
    text_of = _decoder(directory)
    texts = [Prompt(task.name, f"{task.prompt} Answer in JSON.") for task in tasks]
    prompts = [entry.token_ids for entry in encode_prompts(texts, directory)]
    outcomes = []
    with ProgressReport("structured", len(tasks), "schemas") as report:
        for task, prompt in zip(tasks, prompts, strict=True):
            outcomes.append(_try(engine, task, prompt, args, text_of))
            print(outcomes[-1], flush=True)
            report.update(len(outcomes))
    print(_total(outcomes))
    return 0 if all(outcome.is_right for outcome in outcomes) else 1


def _try(
    engine: OfflineEngine,
    task: Task,
    prompt: tuple[int, ...],
    args: argparse.Namespace,
    text_of: Callable[[Sequence[int]], str],
) -> Outcome:
    structure = Structure(kind="json_schema", source=json.dumps(task.schema))

    def generate(early_exit: EarlyExitOptions) -> list[GenerationResult]:
        requests = [
            GenerationRequest(
                request_id=str(seed),
                prompt_token_ids=prompt,
                sampling=SamplingParams(
                    temperature=args.temperature,
                    seed=seed,
                    max_tokens=args.max_tokens,
                    num_logprobs=0,
                    structure=structure,
                ),
                early_exit=early_exit,
            )
            for seed in range(args.num_seeds)
        ]
        return engine.generate(requests)

    plain = generate(EarlyExitOptions(enabled=False))
    drafted = generate(EarlyExitOptions(threshold=_THRESHOLD))
    is_valid = _validator(task.schema)
    pairs = list(zip(plain, drafted, strict=True))
    return Outcome(
        name=task.name,
        num_requests=len(drafted),
        num_valid=sum(
            result.finish_reason is FinishReason.STOP and is_valid(text_of(result.token_ids))
            for result in drafted
        ),
        num_identical=sum((a.token_ids, a.logprobs) == (b.token_ids, b.logprobs) for a, b in pairs),
        num_tokens=sum(len(result.token_ids) for result in drafted),
        num_drafts=sum(result.draft_figures.num_draft_tokens for result in drafted),
        num_accepted=sum(result.draft_figures.num_accepted_tokens for result in drafted),
    )


def _total(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        name="all",
        num_requests=sum(outcome.num_requests for outcome in outcomes),
        num_valid=sum(outcome.num_valid for outcome in outcomes),
        num_identical=sum(outcome.num_identical for outcome in outcomes),
        num_tokens=sum(outcome.num_tokens for outcome in outcomes),
        num_drafts=sum(outcome.num_drafts for outcome in outcomes),
        num_accepted=sum(outcome.num_accepted for outcome in outcomes),
    )


def _validator(schema: Any) -> Callable[[str], bool]:
    try:
        from jsonschema_rs import Draft202012Validator
    except ImportError:
        raise ValueError("validating needs the package jsonschema-rs") from None
    validator = Draft202012Validator(schema, validate_formats=True)

    def is_valid(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except ValueError:
            return False

    return is_valid


def _decoder(directory: Path) -> Callable[[Sequence[int]], str]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))

    def text_of(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    return text_of
