"""Formats a comparison as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.comparison import (
    ALL_TASKS,
    EARLY_EXIT,
    MODES,
    PLAIN,
    TRANSFORMERS,
    Agreement,
    Run,
    TaskComparison,
    mean_of_tasks,
    mean_ratio,
)

_RATIOS = ((EARLY_EXIT, PLAIN), (PLAIN, TRANSFORMERS), (EARLY_EXIT, TRANSFORMERS))


def format_comparisons(comparisons: Sequence[TaskComparison]) -> str:
    """Format one table per concurrency: output tokens per second, ratios and drafts."""
    tables = []
    for concurrency in dict.fromkeys(entry.concurrency for entry in comparisons):
        entries = [entry for entry in comparisons if entry.concurrency == concurrency]
        modes = [mode for mode in MODES if mode in entries[0].modes]
        rows = [_header(modes), *(_row(entry, modes) for entry in entries)]
        tables.append(
            f"{_title(entries)}: output tokens per second, prompts included\n{align(rows)}"
        )
    return "\n\n".join(tables)


def format_agreements(agreements: Sequence[Agreement], *, is_greedy: bool) -> str:
    """Format one line per mode: how many outputs equal plain decoding's, and which do not."""
    lines = []
    for agreement in agreements:
        if agreement.mode == TRANSFORMERS and not is_greedy:
            lines.append("transformers: sampled with another generator, outputs not comparable")
            continue
        name = "plain, all runs" if agreement.mode == PLAIN else agreement.mode
        line = f"{name} = {agreement.reference}: {agreement.num_equal} of {agreement.num_compared}"
        if not agreement.is_complete:
            line += f" (prompts {', '.join(map(str, agreement.different))} differ)"
        lines.append(line)
    return "\n".join(lines)


def mean_ratios(comparisons: Sequence[TaskComparison], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the mean ratios for each concurrency, over tasks and over groups.

    Those over groups, which are single prompts at concurrency 1, are named "single ratios".
    """
    means = []
    for concurrency in sorted({run.concurrency for run in runs}):
        of_tasks = partial(mean_of_tasks, comparisons, concurrency=concurrency)
        of_runs = partial(mean_ratio, runs, concurrency=concurrency)
        for name, mean_of in (("tasks", of_tasks), ("single ratios", of_runs)):
            ratios = {
                f"{mode}/{baseline}": mean
                for mode, baseline in _RATIOS
                if (mean := mean_of(mode, baseline)) is not None
            }
            if ratios:
                means.append({"mean_of": name, "concurrency": concurrency, "ratios": ratios})
    return means


def format_means(means: Sequence[Mapping[str, Any]]) -> str:
    """Format one line per mean."""
    return "\n".join(
        f"mean of {each['mean_of']}, {each['concurrency']} at once: "
        + ", ".join(f"{modes} {ratio:.2f}x" for modes, ratio in each["ratios"].items())
        for each in means
    )


def to_json(comparison: TaskComparison) -> dict[str, Any]:
    """Return all figures of a table row, for JSON."""
    drafts = comparison.drafts
    return {
        "task": comparison.task,
        "concurrency": comparison.concurrency,
        "modes": {
            mode: {
                "num_prompts": figures.num_prompts,
                "num_tokens": figures.num_tokens,
                "duration_s": figures.duration_s,
                "tokens_per_s": figures.tokens_per_s,
                "mean_first_token_s": figures.first_token_s,
            }
            for mode, figures in comparison.modes.items()
        },
        "ratios": {
            f"{mode}/{baseline}": ratio
            for mode, baseline in _RATIOS
            if (ratio := comparison.ratio(mode, baseline)) is not None
        },
        "drafts": {
            "num_steps": drafts.num_steps,
            "num_draft_tokens": drafts.num_draft_tokens,
            "num_accepted_tokens": drafts.num_accepted_tokens,
            "acceptance_rate": drafts.acceptance_rate,
            "mean_acceptance_length": drafts.mean_acceptance_length,
            "accepted_by_layer": dict(sorted(drafts.accepted_by_layer.items())),
        },
    }


def agreement_to_json(agreement: Agreement) -> Mapping[str, Any]:
    """Return an agreement for JSON."""
    return {
        "mode": agreement.mode,
        "reference": agreement.reference,
        "num_equal": agreement.num_equal,
        "num_compared": agreement.num_compared,
        "different_prompts": list(agreement.different),
    }


def _title(entries: Sequence[TaskComparison]) -> str:
    if entries[0].concurrency == 1:
        return "one prompt at a time"
    kind = "of one task" if entries[0].task != ALL_TASKS else "of any task"
    return f"{entries[0].concurrency} prompts at once, {kind}"


def _header(modes: Sequence[str]) -> list[str]:
    ratios = [f"{a}/{b}" for a, b in _RATIOS if a in modes and b in modes]
    drafts = ["accepted", "length", "exits by layer"] if EARLY_EXIT in modes else []
    return ["task", "prompts", *modes, *ratios, *drafts]


def _row(entry: TaskComparison, modes: Sequence[str]) -> list[str]:
    speeds = [f"{entry.modes[mode].tokens_per_s:.1f}" for mode in modes]
    ratios = [
        f"{ratio:.2f}x"
        for mode, baseline in _RATIOS
        if (ratio := entry.ratio(mode, baseline)) is not None
    ]
    row = [entry.task, str(entry.modes[modes[0]].num_prompts), *speeds, *ratios]
    if EARLY_EXIT not in modes:
        return row
    rate, length = entry.drafts.acceptance_rate, entry.drafts.mean_acceptance_length
    layers = sorted(entry.drafts.accepted_by_layer)
    return [
        *row,
        "-" if rate is None else f"{rate:.0%}",
        "-" if length is None else f"{length:.2f}",
        ", ".join(f"{layer}: {entry.exit_share(layer):.0%}" for layer in layers) or "none",
    ]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first and the last to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in (0, len(row) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
