"""`adadecode bench lossless`: do early exits ever change a token, with any way of drafting?

The reference is plain decoding of each prompt alone. Compared with it are the trained heads, alone,
in batches, and in a KV cache far too small for a batch; and batches with scripted drafts that are
always, never or sometimes right, or of which only the second candidates are right. The exit status
is 1 if anything differs.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import describe_machine, print_facts
from benchmarks.model_flags import drafting_config, required_heads
from benchmarks.prompts import choose_prompts, encode_prompts
from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.checkpoint import resolve_model
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.worker import ModelWorker
from training.progress import ProgressReport

Prompt = tuple[int, ...]

_BATCH = 8
_CROWD = 16  # prompts at once in a KV cache that holds one at full length
_SCRIPTS: Mapping[Agreement, str] = {
    "always": f"always agree, batches of {_BATCH}",
    "never": f"never agree, batches of {_BATCH}",
    "sometimes": f"sometimes agree, batches of {_BATCH}",
    "aside": f"second best, batches of {_BATCH}",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of one way of drafting with plain decoding."""

    temperature: float
    name: str
    num_prompts: int
    num_different: int
    num_drafts: int
    num_accepted: int

    def __str__(self) -> str:
        outcome = "identical" if self.num_different == 0 else f"{self.num_different} DIFFER"
        return (
            f"temperature {self.temperature:<4g} {self.name:<28} {self.num_prompts:>5} prompts  "
            f"{self.num_drafts:>7} drafts  {self.num_accepted:>7} accepted  {outcome}"
        )


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when there is nothing to compare.
        EngineError: when the model cannot be loaded.
    """
    directory = resolve_model(args.model)
    heads = required_heads(args, directory)
    texts = choose_prompts(args.prompts, args.num_prompts)
    prompts = [entry.token_ids for entry in encode_prompts(texts, directory)]
    print_facts(describe_machine() | {"model": args.model, "tokens per prompt": args.max_tokens})
    verdicts = []
    for verdict in _verdicts(args, directory, heads, prompts):
        print(verdict, flush=True)
        verdicts.append(verdict)
    return 0 if all(v.num_different == 0 for v in verdicts) else 1


def _verdicts(
    args: argparse.Namespace, directory: Path, heads: Path, prompts: Sequence[Prompt]
) -> Iterator[Verdict]:
    config = drafting_config(args, directory, heads, _BATCH)
    engine = OfflineEngine(config)
    plain: dict[float, list[GenerationResult]] = {}
    for temperature in args.temperatures:
        ask = _Asker(args.max_tokens, temperature)
        plain[temperature] = ask.all(engine, "plain, alone", prompts, 1, early_exit=False)
        for name, batch in (("heads, alone", 1), (f"heads, in batches of {_BATCH}", _BATCH)):
            results = ask.all(engine, name, prompts, batch, early_exit=True)
            yield _judge(temperature, name, plain[temperature], results)
    if args.ways == "heads":
        return
    exit_layers = engine.info.exit_layers
    vocab_size = engine.info.vocab_size
    del engine
    longest = max(map(len, prompts)) + args.max_tokens
    cache = replace(config.cache, num_blocks=-(-longest // config.cache.block_size))
    engine = OfflineEngine(replace(config, cache=cache))  # just one prompt at full length fits
    for temperature in args.temperatures:
        ask = _Asker(args.max_tokens, temperature)
        name = f"heads, {_CROWD} where one fits"
        results = ask.all(engine, name, prompts, _CROWD, early_exit=True)
        yield _judge(temperature, name, plain[temperature], results)
    del engine
    for agreement, name in _SCRIPTS.items():
        for temperature in args.temperatures:
            script = {
                prompt: prompt + result.token_ids
                for prompt, result in zip(prompts, plain[temperature], strict=True)
            }
            drafter = ScriptedDrafter(exit_layers, script, agreement, vocab_size)
            engine = OfflineEngine(config, ModelWorker(config, drafter=drafter))
            ask = _Asker(args.max_tokens, temperature)
            results = ask.all(engine, name, prompts, _BATCH, early_exit=True)
            yield _judge(temperature, name, plain[temperature], results)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Generates for all prompts, a batch at a time."""

    max_tokens: int
    temperature: float

    def all(
        self,
        engine: OfflineEngine,
        name: str,
        prompts: Sequence[Prompt],
        batch: int,
        *,
        early_exit: bool,
    ) -> list[GenerationResult]:
        results: list[GenerationResult] = []
        with ProgressReport(f"{name}, {self.temperature:g}", len(prompts), "prompts") as report:
            for start in range(0, len(prompts), batch):
                requests = [
                    self._request(index, prompts[index], early_exit)
                    for index in range(start, min(start + batch, len(prompts)))
                ]
                results += engine.generate(requests)
                report.update(len(results))
        return results

    def _request(self, index: int, prompt: Prompt, early_exit: bool) -> GenerationRequest:
        return GenerationRequest(
            request_id=str(index),
            prompt_token_ids=prompt,
            sampling=SamplingParams(
                temperature=self.temperature,
                seed=index,
                max_tokens=self.max_tokens,
                ignore_eos=True,
                num_logprobs=0,
                num_prompt_logprobs=0,
            ),
            pooling="mean",
            early_exit=EarlyExitOptions(enabled=early_exit),
        )


def _judge(
    temperature: float,
    name: str,
    expected: Sequence[GenerationResult],
    results: Sequence[GenerationResult],
) -> Verdict:
    """Compare tokens, log-probabilities, prompt log-probabilities and embeddings, bit by bit."""
    different = [
        index
        for index, (a, b) in enumerate(zip(expected, results, strict=True))
        if _bits(a) != _bits(b)
    ]
    return Verdict(
        temperature=temperature,
        name=name,
        num_prompts=len(results),
        num_different=len(different),
        num_drafts=sum(result.draft_figures.num_draft_tokens for result in results),
        num_accepted=sum(result.draft_figures.num_accepted_tokens for result in results),
    )


def _bits(result: GenerationResult) -> tuple[object, ...]:
    return result.token_ids, result.logprobs, result.prompt_logprobs, result.embedding
