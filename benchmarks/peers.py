"""`adadecode bench peers`: our engine beside llama.cpp and transformers, precision by precision.

There is one stream. In every round each contestant runs once, in a rotating order, so that whatever
else the machine does affects all alike; figures are medians over the rounds. Decoding is timed from
the first token on. Our engine decodes answers to the benchmark's prompts, since early exits need
real text. llama-bench decodes arbitrary text after as many tokens, which costs it the same.
llama.cpp rounds what Q8_0 and Q4_1 are multiplied with to 8 bits; ours with
`--activation-quantization int8`.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from benchmarks.contest import Contestant
from benchmarks.contestants import EngineContestant, TransformersContestant
from benchmarks.llama_bench import LlamaBench, Speed, find_llama_bench
from benchmarks.machine import describe_machine, print_facts
from benchmarks.peer_files import in_precision, source_file
from benchmarks.plots import plot_peers, require_matplotlib
from benchmarks.prompts import choose_prompts, encode_prompts
from engine.checkpoint import find_heads, resolve_model
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import EarlyExitOptions
from engine.worker.cores import usable_cores

PLAIN, EARLY_EXIT, LLAMA_CPP, TRANSFORMERS = "plain", "early exits", "llama.cpp", "transformers"
# Our engine's dtype and quantization for each GGUF precision.
_OURS: Mapping[
    str, tuple[Literal["auto", "float32", "bfloat16"], Literal["none", "int8", "q4"]]
] = {
    "f32": ("float32", "none"),
    "bf16": ("bfloat16", "none"),
    "q8_0": ("auto", "int8"),
    "q4_1": ("auto", "q4"),
}
_RATIOS = ((PLAIN, LLAMA_CPP), (EARLY_EXIT, LLAMA_CPP), (EARLY_EXIT, PLAIN), (PLAIN, TRANSFORMERS))
_PROMPT_TOKEN = 50  # any token that is not special


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The speed of one contestant at one precision, as medians over the rounds."""

    precision: str
    contestant: str
    prompt: float  # prompt tokens per second
    decode: float  # output tokens per second


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if a program or a file is missing, or the options do not fit together.
        EngineError: if the model cannot be loaded.
    """
    if args.plot:
        require_matplotlib()
    if args.max_tokens < 2:
        raise ValueError("--max-tokens should be at least 2: decoding is timed from the first on")
    threads = args.threads or usable_cores()
    contest = _contest(args, threads)
    machine = describe_machine()
    settings = {
        "threads": str(threads),
        "lengths": f"{args.prompt_tokens} prompt tokens, {args.max_tokens} decoded",
        "rounds": f"{args.rounds}, medians",
        "activations": f"{args.activation_quantization} (ours, of quantized weights)",
    }
    print_facts(machine | settings)
    runs = _measure(contest, args.rounds)
    figures = _medians(runs)
    print(f"\n{format_figures(figures)}")
    if args.json:
        report = {
            "machine": machine,
            "settings": settings,
            "figures": [asdict(entry) for entry in figures],
            "runs": [
                {"precision": key[0], "contestant": key[1], "speeds": [asdict(s) for s in speeds]}
                for key, speeds in runs.items()
            ],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        decode = {(f.precision, f.contestant): f.decode for f in figures}
        plot_peers(decode, args.plot, f"{args.model} on {machine['cpu']}")
    return 0


_Turn = Callable[[int], Speed]  # called with the number of the round


def _contest(args: argparse.Namespace, threads: int) -> dict[tuple[str, str], _Turn]:
    """Return the contestants' turns, by precision and name."""
    directory = resolve_model(args.model)
    heads = args.heads or find_heads(args.model, directory)
    prompts = [
        entry.token_ids for entry in encode_prompts(choose_prompts(args.prompts, None), directory)
    ]
    llama = None
    if str(args.llama_bench) != "none":
        llama = find_llama_bench(args.llama_bench)
        if llama is None:
            print("llama-bench is not on PATH: without llama.cpp (--llama-bench FILE)")
    contest: dict[tuple[str, str], _Turn] = {}
    for precision in args.precisions:
        engine = OfflineEngine(_config(args, precision, directory, heads, threads))
        for name in (PLAIN, EARLY_EXIT) if heads else (PLAIN,):
            ours = partial(_engine_contestant, engine, name == EARLY_EXIT)
            contest[precision, name] = partial(_speed, ours, prompts, args)
        if llama is not None:
            bench = LlamaBench(
                program=llama,
                num_threads=threads,
                num_prompt_tokens=args.prompt_tokens,
                num_output_tokens=args.max_tokens,
            )
            file = in_precision(source_file(args.model), precision)
            contest[precision, LLAMA_CPP] = partial(_llama_speed, bench, file, prompts)
    if not args.no_transformers and "f32" in args.precisions:
        torch.set_num_threads(threads)
        contest["f32", TRANSFORMERS] = partial(
            _speed, _Transformers(directory, threads), prompts, args
        )
    return contest


def _config(
    args: argparse.Namespace, precision: str, directory: Path, heads: Path | None, threads: int
) -> EngineConfig:
    dtype, quantization = _OURS[precision]
    rounded: Literal["none", "int8"] = (
        "none" if quantization == "none" else args.activation_quantization
    )
    return EngineConfig(
        model=ModelConfig(
            directory=directory,
            device="cpu",
            dtype=dtype,
            num_threads=threads,
            quantization=quantization,
            activation_quantization=rounded,
        ),
        scheduler=SchedulerConfig(max_num_seqs=1),
        exits=ExitsConfig(enabled=heads is not None, heads=heads),
        worker="inline",
    )


def _engine_contestant(engine: OfflineEngine, early_exit: bool, max_tokens: int) -> Contestant:
    options = EarlyExitOptions(enabled=early_exit)
    return EngineContestant(engine, options, max_tokens=max_tokens, temperature=0.0)


class _Transformers:
    """Makes contestants of transformers' `generate`, each once, and gives torch all threads."""

    def __init__(self, directory: Path, threads: int) -> None:
        self._make = partial(
            TransformersContestant, directory, device="cpu", dtype="float32", temperature=0.0
        )
        self._made: dict[int, Contestant] = {}
        self._threads = threads

    def __call__(self, max_tokens: int) -> Contestant:
        torch.set_num_threads(self._threads)
        if max_tokens not in self._made:
            self._made[max_tokens] = self._make(max_tokens=max_tokens)
        return self._made[max_tokens]


def _speed(
    make: Callable[[int], Contestant],
    prompts: Sequence[tuple[int, ...]],
    args: argparse.Namespace,
    number: int,
) -> Speed:
    prompt = prompts[number % len(prompts)]
    outcome = make(args.max_tokens).run([prompt], [0])
    num_tokens = sum(map(len, outcome.token_ids))
    started = time.perf_counter()
    make(1).run([(_PROMPT_TOKEN,) * args.prompt_tokens], [0])
    return Speed(
        prompt=args.prompt_tokens / (time.perf_counter() - started),
        decode=(num_tokens - 1) / (outcome.duration_s - outcome.first_token_s),
    )


def _llama_speed(
    bench: LlamaBench, file: Path, prompts: Sequence[tuple[int, ...]], number: int
) -> Speed:
    return bench.run(file, len(prompts[number % len(prompts)]))


def _measure(
    contest: Mapping[tuple[str, str], _Turn], rounds: int
) -> dict[tuple[str, str], list[Speed]]:
    """Return the speeds of every round, after one uncounted run of each contestant."""
    runs: dict[tuple[str, str], list[Speed]] = {key: [] for key in contest}
    order = list(contest)
    for turn in contest.values():
        turn(0)
    for number in range(rounds):
        first = number % len(order)
        for key in order[first:] + order[:first]:
            # Our engine has its own threads, beside which torch's would spin.
            torch.set_num_threads(1)
            runs[key].append(contest[key](number))
    return runs


def _medians(runs: Mapping[tuple[str, str], Sequence[Speed]]) -> list[Figures]:
    return [
        Figures(
            precision=precision,
            contestant=contestant,
            prompt=median(speed.prompt for speed in speeds),
            decode=median(speed.decode for speed in speeds),
        )
        for (precision, contestant), speeds in runs.items()
    ]


def format_figures(figures: Sequence[Figures]) -> str:
    """Format a table by precision, and the ratios."""
    by_key = {(entry.precision, entry.contestant): entry for entry in figures}
    lines = [f"{'one stream':<24}{'decode tok/s':>14}{'prompt tok/s':>14}"]
    for entry in figures:
        name = f"{entry.precision} {entry.contestant}"
        lines.append(f"{name:<24}{entry.decode:>14.1f}{entry.prompt:>14.0f}")
    lines.append("")
    for precision in dict.fromkeys(entry.precision for entry in figures):
        for mode, baseline in _RATIOS:
            one, other = by_key.get((precision, mode)), by_key.get((precision, baseline))
            if one is not None and other is not None:
                lines.append(
                    f"{precision}: {mode} / {baseline}: decode {one.decode / other.decode:.2f}x, "
                    f"prompt {one.prompt / other.prompt:.2f}x"
                )
    return "\n".join(lines)
