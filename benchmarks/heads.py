"""`adadecode bench heads`: compares exit heads with one another, and with plain decoding.

All decode the same prompts in turns on one copy of the weights. With the modelled clock the figures
are the same in every run, whatever else the machine does; with another clock they are as in `bench
latency`. The exit status is 1 if heads changed an output.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import (
    ALL_TASKS,
    PLAIN,
    TaskComparison,
    check_agreement,
    compare,
    mean_of_tasks,
    mean_ratio,
)
from benchmarks.contest import Contest, Contestant
from benchmarks.contestants import EngineContestant
from benchmarks.engines import make_engines
from benchmarks.machine import describe_machine, print_facts
from benchmarks.prompts import choose_prompts, encode_prompts
from benchmarks.report import agreement_to_json, align, format_agreements
from engine.checkpoint import find_heads, resolve_model
from engine.config import ExitsConfig
from engine.request import EarlyExitOptions


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when the options do not fit together.
        EngineError: when the model cannot be loaded.
    """
    directory = resolve_model(args.model)
    heads = args.heads or [find_heads(args.model, directory)]
    if heads == [None]:
        raise ValueError(f"no exit heads for {args.model}: give --heads")
    entries = encode_prompts(choose_prompts(args.prompts, args.num_prompts), directory)
    engines = make_engines(args, directory, entries, args.concurrency, are_several=True)
    contestants: dict[str, Contestant] = {}
    for name, where in _named(heads).items():
        timed = engines.make(
            ExitsConfig(
                heads=where,
                lookup=not args.no_lookup_drafts,
                alternates=not args.no_second_candidates,
            )
        )
        if not contestants:  # one engine is enough for plain decoding
            plain = EarlyExitOptions(enabled=False)
            contestants[PLAIN] = EngineContestant.asked(args, timed, plain)
        contestants[name] = EngineContestant.asked(args, timed, EarlyExitOptions())
    settings = _describe_settings(args) | engines.settings
    machine = describe_machine()
    print_facts(machine | settings)
    runs = Contest.asked(args, contestants, entries).measure()
    comparisons, agreements = compare(runs), check_agreement(runs)
    figures = [
        _figures(name, concurrency, comparisons)
        | {"mean_of_single_ratios": mean_ratio(runs, name, PLAIN, concurrency)}
        for concurrency in args.concurrency
        for name in contestants
        if name != PLAIN
    ]
    print(f"\n{_format(figures)}\n\n{format_agreements(agreements, is_greedy=True)}")
    if args.json:
        report = {
            "machine": machine,
            "settings": settings,
            "figures": figures,
            "agreements": [agreement_to_json(entry) for entry in agreements],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(entry.is_complete for entry in agreements) else 1


def _named(heads: Sequence[Path]) -> dict[str, Path]:
    """Name heads by the last part of their path, or by all of it if that is not unique.

    Raises:
        ValueError: if heads are given twice, or have the name of plain decoding.
    """
    short = [each.resolve().name for each in heads]
    names = short if len(set(short)) == len(short) else [str(each) for each in heads]
    named = dict(zip(names, heads, strict=True))
    if len(named) < len(heads) or PLAIN in named:
        raise ValueError("--heads: give every directory once, and none named 'plain'")
    return named


def _describe_settings(args: argparse.Namespace) -> dict[str, str]:
    details = [
        text
        for text, is_so in (
            ("no look-up drafts", args.no_lookup_drafts),
            ("no second candidates", args.no_second_candidates),
            ("the next prompt begins where one ends", args.continuous),
        )
        if is_so
    ]
    generation = f"{args.max_tokens} tokens per prompt, temperature {args.temperature:g}"
    return {"model": args.model, "generation": ", ".join((generation, *details))}


def _figures(name: str, concurrency: int, comparisons: Sequence[TaskComparison]) -> dict[str, Any]:
    """Return the figures of one row: these heads at one concurrency."""
    entries = [entry for entry in comparisons if entry.concurrency == concurrency]
    whole = entries[-1].modes[name]  # all tasks together, or the only one
    return {
        "heads": name,
        "concurrency": concurrency,
        "committed_per_step": whole.committed_per_step,
        "verified_per_step": whole.verified_per_step,
        "ratio": entries[-1].ratio(name, PLAIN),
        "mean_of_tasks": mean_of_tasks(comparisons, name, PLAIN, concurrency),
        "tasks": {
            entry.task: {
                "ratio": entry.ratio(name, PLAIN),
                "committed_per_step": entry.modes[name].committed_per_step,
                "verified_per_step": entry.modes[name].verified_per_step,
            }
            for entry in entries
            if entry.task != ALL_TASKS
        },
    }


def _format(figures: Sequence[Mapping[str, Any]]) -> str:
    """Format one table per concurrency: tokens committed and verified per step, and speed-ups."""
    tables = []
    for concurrency in dict.fromkeys(each["concurrency"] for each in figures):
        chosen = [each for each in figures if each["concurrency"] == concurrency]
        tasks = list(chosen[0]["tasks"])
        header = ["heads", "committed", "verified", "all", "mean of tasks", *tasks]
        rows = [
            [
                each["heads"],
                f"{each['committed_per_step']:.3f}",
                f"{each['verified_per_step']:.2f}",
                _times(each["ratio"]),
                _times(each["mean_of_tasks"]),
                *(_times(each["tasks"][task]["ratio"]) for task in tasks),
            ]
            for each in chosen
        ]
        title = f"{concurrency} at once: tokens of a prompt per step, and times plain decoding"
        tables.append(f"{title}\n{align([header, *rows])}")
    return "\n\n".join(tables)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"
