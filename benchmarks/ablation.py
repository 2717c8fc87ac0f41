"""`adadecode bench ablation`: early exits whole and with one part taken away at a time.

Each row of the table is one such variant, compared with plain decoding. All run the same prompts in
turns on one copy of the weights; with the modelled clock even small differences can be told apart.
The exit status is 1 if a row that verifies its drafts changed an output.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from benchmarks.comparison import PLAIN, DraftTotals, Run, mean_ratio
from benchmarks.contest import Contest, Contestant
from benchmarks.contestants import EngineContestant
from benchmarks.engines import make_engines
from benchmarks.machine import describe_machine, print_facts
from benchmarks.markdown import format_table
from benchmarks.model_flags import required_heads
from benchmarks.plots import RatioBar, plot_ratios, require_matplotlib
from benchmarks.prompts import choose_prompts, encode_prompts
from benchmarks.variants import (
    noise,
    untrained,
    with_full_vocabulary,
    without_previous_token,
    write_variant,
)
from engine.checkpoint import resolve_model
from engine.config import ExitsConfig
from engine.model.spec import ModelSpec
from engine.request import EarlyExitOptions

_THRESHOLD = 0.75  # the paper's confidence threshold
_FIXED_DRAFTS = 3

_NOISE = "heads of noise"
_CHANGES = {
    "no previous-token feature": (without_previous_token, "trained with it, not anew without"),
    "full vocabulary": (with_full_vocabulary, ""),
    "original LM head, untrained": (untrained, "logit lens"),
    _NOISE: (noise, ""),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """How one row of the table decodes."""

    name: str
    exits: ExitsConfig
    options: EarlyExitOptions = EarlyExitOptions()  # noqa: RUF009 - frozen
    verifies: bool = True
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a variant's figures at one concurrency."""

    variant: Variant
    concurrency: int
    ratio: float  # plain decoding's time over its own, the mean over prompts or groups of them
    drafts: DraftTotals
    num_changed: int  # outputs that differ from plain decoding's
    num_outputs: int

    def cells(self) -> list[str]:
        """Return the row's cells as text."""
        rate, length = self.drafts.acceptance_rate, self.drafts.mean_acceptance_length
        return [
            self.variant.name,
            f"{self.concurrency}",
            f"{self.ratio:.2f}",
            "-" if rate is None else f"{rate:.0%}",
            "-" if length is None else f"{length:.2f}",
            f"{self.num_changed} of {self.num_outputs}",
            self.variant.remark,
        ]


_HEADER = [
    "row",
    "at once",
    "speed-up",
    "drafts accepted",
    "mean length",
    "outputs changed",
    "remark",
]


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when the options do not fit together.
        EngineError: when the model cannot be loaded.
    """
    if args.plot:
        require_matplotlib()
    directory = resolve_model(args.model)
    heads = required_heads(args, directory)
    retrained = dict(map(_retrained, args.retrained))
    entries = encode_prompts(choose_prompts(args.prompts, args.num_prompts), directory)
    with tempfile.TemporaryDirectory() as scratch:
        engines = make_engines(args, directory, entries, args.concurrency, are_several=True)
        vocab_size = ModelSpec.from_directory(directory).vocab_size
        variants = _asked_for(args.row, _variants(heads, Path(scratch), vocab_size, retrained))
        contestants: dict[str, Contestant] = {}
        for variant in variants:
            timed = engines.make(variant.exits, verifies=variant.verifies)
            if not contestants:  # one engine is enough for plain decoding
                plain = EarlyExitOptions(enabled=False)
                contestants[PLAIN] = EngineContestant.asked(args, timed, plain)
            contestants[variant.name] = EngineContestant.asked(args, timed, variant.options)
        print_facts(describe_machine() | {"model": args.model} | engines.settings)
        runs = Contest.asked(args, contestants, entries).measure()
    rows = [_row(variant, count, runs) for count in args.concurrency for variant in variants]
    table = format_table(_HEADER, [row.cells() for row in rows])
    print(f"\n{table}")
    if args.markdown:
        args.markdown.write_text(table + "\n", encoding="utf-8")
    if args.plot:
        bars = [_bar(row, names_concurrency=len(args.concurrency) > 1) for row in rows]
        plot_ratios(bars, args.plot, f"{args.model}: times plain decoding's speed")
    return int(any(row.num_changed and row.variant.verifies for row in rows))


def _retrained(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR into a row's name and the directory of its heads.

    Raises:
        ValueError: if the text has another form, or there are no heads.
    """
    name, _, directory = text.partition("=")
    if name in ("", _NOISE) or not (Path(directory) / "heads.json").is_file():
        raise ValueError(f"--retrained: expected NAME=DIR with heads in DIR, got {text!r}")
    return name, Path(directory)


def _asked_for(names: Sequence[str] | None, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants with these names; None: all of them.

    Raises:
        ValueError: if there is no row of a name.
    """
    known = [variant.name for variant in variants]
    for name in names or ():
        if name not in known:
            raise ValueError(f"--row: {name!r} is none of {', '.join(map(repr, known))}")
    return [variant for variant in variants if names is None or variant.name in names]


def _variants(
    heads: Path, scratch: Path, vocab_size: int, retrained: Mapping[str, Path]
) -> list[Variant]:
    """Return the variants of all rows.

    Args:
        scratch: Directory that changed heads are written to.
        retrained: Heads that were trained for a row, by its name; a new name is a new row.
    """
    full, no_lookup = ExitsConfig(heads=heads), EarlyExitOptions(lookup=False)
    fixed = EarlyExitOptions(threshold=0.0, max_draft_tokens=_FIXED_DRAFTS, lookup=False)
    changed = {
        name: Variant(
            name,
            ExitsConfig(heads=write_variant(heads, scratch / str(number), change, vocab_size)),
            remark=remark,
        )
        for number, (name, (change, remark)) in enumerate(_CHANGES.items())
    }
    of_noise = changed[_NOISE].exits
    changed |= {  # they replace the row of the same name
        name: Variant(name, ExitsConfig(heads=directory), remark="trained for it")
        for name, directory in retrained.items()
    }
    return [
        Variant("full", full),
        Variant("no verification", full, verifies=False, remark="drafts are taken as they are"),
        Variant(
            "fixed single exit",
            full,
            fixed,
            remark=f"every token leaves at the first exit, {_FIXED_DRAFTS} drafts a step",
        ),
        *changed.values(),
        Variant(f"{_NOISE}, no free drafts", of_noise, no_lookup, remark="nothing to gain"),
        Variant(
            "no policy",
            full,
            EarlyExitOptions(threshold=_THRESHOLD, max_draft_tokens=5),
            remark=f"fixed threshold {_THRESHOLD}, at most 5 drafts, as in the paper",
        ),
        Variant("no free drafts", full, no_lookup, remark="heads alone"),
        Variant(
            "no second candidates",
            replace(full, alternates=False),
            remark="one candidate for a place",
        ),
        Variant("no heads", ExitsConfig(), remark="free drafts alone"),
    ]


def _row(variant: Variant, concurrency: int, runs: Sequence[Run]) -> Row:
    ratio = mean_ratio(runs, variant.name, PLAIN, concurrency)
    assert ratio is not None
    runs = [run for run in runs if run.concurrency == concurrency]
    plain = {run.prompt_indices: run.token_ids for run in runs if run.mode == PLAIN}
    mine = [run for run in runs if run.mode == variant.name]
    pairs = [
        pair for run in mine for pair in zip(run.token_ids, plain[run.prompt_indices], strict=True)
    ]
    return Row(
        variant,
        concurrency,
        ratio,
        reduce(DraftTotals.add, (one for run in mine for one in run.figures), DraftTotals()),
        sum(own != expected for own, expected in pairs),
        len(pairs),
    )


def _bar(row: Row, *, names_concurrency: bool) -> RatioBar:
    name = row.variant.name
    if names_concurrency:
        name = f"{name}, {row.concurrency} at once"
    return RatioBar(name, row.ratio, is_lossless=not row.num_changed)
