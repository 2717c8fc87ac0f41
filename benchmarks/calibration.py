"""`adadecode bench calibration`: do the policy's chances of acceptance come true?

Serves prompts that the heads were not trained on and, after a warm-up, compares the chance given to
each draft with whether it was accepted. The figure is the expected calibration error (ECE): the
mean distance between the predicted and the actual acceptance, over ten bins of the prediction. The
exit status is 1 if an exit's error is above the limit.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import pi, sqrt
from pathlib import Path

from benchmarks.contest import Entry
from benchmarks.machine import describe_machine, print_facts
from benchmarks.model_flags import model_config
from benchmarks.prompts import choose_prompts, encode_prompts
from engine.checkpoint import find_heads, resolve_model
from engine.config import EngineConfig, ExitsConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import GenerationRequest, SamplingParams
from engine.scheduler import Committed
from engine.worker.chances import Chance
from engine.worker.worker import ModelWorker
from training.progress import ProgressReport

LIMIT = 0.05
_BINS = 10


@dataclass(slots=True)
class Verdicts:
    """The chances that drafts were given, and whether they were accepted."""

    outcomes: dict[tuple[str, bool], list[tuple[float, bool]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, chance: Chance, accepted: bool) -> None:
        """Add a chance and its outcome; several chances of one draft count for their own kinds."""
        kind = chance.kind if isinstance(chance.kind, str) else f"exit {chance.kind}"
        self.outcomes[kind, chance.is_greedy].append((chance.probability, accepted))


def expected_calibration_error(outcomes: Sequence[tuple[float, bool]]) -> float:
    """Return the ECE over ten bins of equal width, each weighted by its number of outcomes."""
    gaps = (abs(sum(c for c, _ in part) - sum(a for _, a in part)) for part in _bins(outcomes))
    return sum(gaps) / len(outcomes) if outcomes else 0.0


def error_by_luck(outcomes: Sequence[tuple[float, bool]]) -> float:
    """Return the ECE to expect by luck alone, if every chance is true.

    With few outcomes in a bin the actual rate strays from the true one. In every bin the normal
    approximation is used: E|x| = sqrt(2 / pi * variance).
    """
    gaps = (sqrt(2 / pi * sum(c * (1 - c) for c, _ in part)) for part in _bins(outcomes))
    return sum(gaps) / len(outcomes) if outcomes else 0.0


def _bins(outcomes: Sequence[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    """Sort outcomes into bins by their chance, without empty bins."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for chance, accepted in outcomes:
        bins[min(int(chance * _BINS), _BINS - 1)].append((chance, accepted))
    return list(bins.values())


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when there is nothing to measure.
        EngineError: when the model cannot be loaded.
    """
    directory = resolve_model(args.model)
    heads = args.heads or find_heads(args.model, directory)
    entries = encode_prompts(choose_prompts(args.prompts, args.num_prompts), directory)
    print_facts(describe_machine() | {"model": args.model, "warm-up": f"{args.warm_up} tokens"})
    worst = 0.0
    for temperature in args.temperatures:
        verdicts = _serve(args, _config(args, directory, heads), temperature, entries)
        for (kind, _), outcomes in sorted(verdicts.outcomes.items()):
            error = expected_calibration_error(outcomes)
            if kind.startswith("exit"):
                worst = max(worst, error)
            said = sum(chance for chance, _ in outcomes) / len(outcomes)
            came = sum(accepted for _, accepted in outcomes) / len(outcomes)
            print(
                f"temperature {temperature:<4g} {kind:<8} {len(outcomes):>6} guesses  "
                f"said {said:.3f}  came {came:.3f}  ECE {error:.3f} "
                f"({error_by_luck(outcomes):.3f} by luck alone)"
            )
    return int(worst > LIMIT)


def _serve(
    args: argparse.Namespace, config: EngineConfig, temperature: float, entries: Sequence[Entry]
) -> Verdicts:
    """Serve one prompt at a time, and return the verdicts after the warm-up."""
    worker = ModelWorker(config)
    drafting = worker.drafting
    if drafting is None:
        raise ValueError("nothing drafts here: no exit heads, no look-ups")
    verdicts, num_tokens = Verdicts(), 0
    engine = OfflineEngine(config, worker)

    def count(committed: Sequence[Committed]) -> None:
        nonlocal num_tokens
        num_tokens += sum(item.num_new_tokens for item in committed)
        if num_tokens >= args.warm_up:
            drafting.chances.on_verdict = verdicts.add

    with ProgressReport(f"calibration, {temperature:g}", len(entries), "prompts") as report:
        for index, entry in enumerate(entries):
            request = GenerationRequest(
                request_id=str(index),
                prompt_token_ids=entry.token_ids,
                sampling=SamplingParams(
                    temperature=temperature, seed=index, max_tokens=args.max_tokens, ignore_eos=True
                ),
            )
            engine.generate([request], on_step=count)
            report.update(index + 1)
    return verdicts


def _config(args: argparse.Namespace, directory: Path, heads: Path | None) -> EngineConfig:
    return EngineConfig(
        model=model_config(args, directory),
        scheduler=SchedulerConfig(max_num_seqs=1),
        exits=ExitsConfig(heads=heads),
        worker="inline",
    )
