"""`adadecode bench latency`: runs the same prompts in every mode.

Prints the machine, a table, and whether all outputs are the same. The exit status is 1 if early
exits or a batch changed an output.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison import (
    EARLY_EXIT,
    MODES,
    PLAIN,
    TRANSFORMERS,
    check_agreement,
    compare,
)
from benchmarks.contest import Contest, Contestant
from benchmarks.contestants import EngineContestant, TransformersContestant
from benchmarks.engines import make_engines
from benchmarks.machine import describe_machine, print_facts
from benchmarks.plots import plot_latency, require_matplotlib
from benchmarks.prompts import choose_prompts, encode_prompts
from benchmarks.report import (
    agreement_to_json,
    format_agreements,
    format_comparisons,
    format_means,
    mean_ratios,
    to_json,
)
from engine.checkpoint import find_heads, resolve_model
from engine.config import ExitsConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions
from training.engines import MODELLED, TimedEngine


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when the options do not fit together.
        EngineError: when the model cannot be loaded.
    """
    if args.plot:
        require_matplotlib()
    prompts = choose_prompts(args.prompts, args.num_prompts)
    directory = resolve_model(args.model)
    heads = args.heads or find_heads(args.model, directory)
    modes = _modes(args)
    entries = encode_prompts(prompts, directory)
    engines = make_engines(args, directory, entries, args.concurrency)
    timed = engines.make(_exits(args, heads, modes))
    settings = _describe_settings(args, timed.engine, heads, modes) | engines.settings
    machine = describe_machine()
    print_facts(machine | settings)
    contestants = _contestants(args, timed, directory, modes)
    runs = Contest.asked(args, contestants, entries).measure()
    comparisons, agreements = compare(runs), check_agreement(runs)
    means = mean_ratios(comparisons, runs)
    print(f"\n{format_comparisons(comparisons)}\n\n{format_means(means)}\n")
    print(format_agreements(agreements, is_greedy=args.temperature == 0))
    if args.json:
        report = {
            "machine": machine,
            "settings": settings,
            "comparisons": [to_json(entry) for entry in comparisons],
            "means": means,
            "agreements": [agreement_to_json(entry) for entry in agreements],
            "runs": [asdict(entry) for entry in runs],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot_latency(
            comparisons, args.plot, f"{args.model} on {machine.get('gpu', machine['cpu'])}"
        )
    ours = [entry for entry in agreements if entry.mode != TRANSFORMERS]
    return 0 if all(entry.is_complete for entry in ours) else 1


def _modes(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the modes asked for, in the order of printing.

    Raises:
        ValueError: if the clock cannot time one of them.
    """
    can_be_timed = MODES if args.clock != MODELLED else (PLAIN, EARLY_EXIT)
    asked = can_be_timed if args.modes is None else args.modes
    for mode in asked:
        if mode not in can_be_timed:
            raise ValueError(f"--clock {MODELLED} cannot time {mode}; leave it out of --modes")
    return tuple(mode for mode in MODES if mode in asked)


def _exits(args: argparse.Namespace, heads: Path | None, modes: Sequence[str]) -> ExitsConfig:
    return ExitsConfig(
        enabled=EARLY_EXIT in modes, heads=heads, max_draft_tokens=args.max_draft_tokens
    )


def _contestants(
    args: argparse.Namespace, timed: TimedEngine, directory: Path, modes: Sequence[str]
) -> dict[str, Contestant]:
    info = timed.engine.info
    contestants: dict[str, Contestant] = {}
    for mode in modes:
        if mode == TRANSFORMERS:
            contestants[mode] = TransformersContestant(
                directory,
                device=info.device,
                dtype=info.dtype,
                max_tokens=args.max_tokens,
                temperature=args.temperature,
                clock=timed.clock,
            )
            continue
        early_exit = EarlyExitOptions(enabled=mode != PLAIN, threshold=args.threshold)
        contestants[mode] = EngineContestant.asked(args, timed, early_exit)
    return contestants


def _describe_settings(
    args: argparse.Namespace, engine: OfflineEngine, heads: Path | None, modes: Sequence[str]
) -> dict[str, str]:
    info = engine.info
    settings = {
        "model": f"{args.model}, {info.num_layers} layers",
        "computed": f"{info.numbers} on {info.device} by {info.backend}",
        "generation": f"{args.max_tokens} tokens per prompt, temperature {args.temperature:g}",
    }
    if args.continuous:
        settings["generation"] += ", the next prompt begins where one ends"
    if info.max_draft_tokens:
        gate = "cost-aware" if args.threshold is None else f"threshold {args.threshold:g}"
        layers = ", ".join(map(str, info.exit_layers)) or "none"
        settings["exits"] = f"at {layers}, at most {info.max_draft_tokens} drafts, {gate}, {heads}"
    if TRANSFORMERS in modes and args.concurrency != (1,):
        settings["transformers"] = "one prompt at a time only"
    return settings
