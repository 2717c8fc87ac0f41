"""`python -m benchmarks.masks`: what it costs to follow a structure, in CPU time of the worker.

Each of the schemas of `adadecode bench structured` is followed for some tokens, chosen at random
among those it allows; then two grammars that can be read in ever more ways, until they are given
up. All rows of a step wait for each of these masks.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.schemas import TASKS
from benchmarks.serve_figures import percentile_of
from engine.checkpoint import resolve_model
from engine.model.spec import ModelSpec
from engine.plan import SequenceStart
from engine.request import GenerationRequest, SamplingParams, Structure
from engine.sequence import Sequence as EngineSequence
from engine.worker.grammars import Grammars

_AMBIGUOUS = (
    "root ::= root root | [a-z ]\n",
    'root ::= s\ns ::= s s | "a" s | s "b" | [a-z] | "(" s ")"\n',
)


@dataclass(frozen=True, slots=True)
class Walk:
    """A structure, followed."""

    token_ms: Sequence[float]  # CPU time of each token: its mask, and to commit it
    error: str | None


def walk(grammars: Grammars, structure: Structure, *, seed: int, most: int) -> Walk:
    """Follow a structure to its end, or for `most` tokens, or until it is given up."""
    choose = random.Random(seed)
    times: list[float] = []
    state = grammars.open(_start(structure))
    while len(times) < most and state.error is None:
        started = time.thread_time()
        mask = state.allowed((), puts_off_end=True)
        taken = time.thread_time() - started
        allowed = [] if mask is None else mask.nonzero().flatten().tolist()
        if not allowed:
            break
        started = time.thread_time()
        state.append([choose.choice(allowed)])
        times.append(1000 * (taken + time.thread_time() - started))
    return Walk(times, state.error)


def _start(structure: Structure) -> SequenceStart:
    sampling = SamplingParams(structure=structure, max_tokens=1)
    request = GenerationRequest(request_id="walk", prompt_token_ids=(1,), sampling=sampling)
    return EngineSequence(0, request, (), 2).start()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", metavar="MODEL")
    parser.add_argument("--num-seeds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=60, metavar="N", help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = resolve_model(args.model)
    spec = ModelSpec.from_directory(directory)
    grammars = Grammars(directory, spec.vocab_size, spec.eos_token_ids)
    times: list[float] = []
    for task in TASKS:
        structure = Structure(kind="json_schema", source=json.dumps(task.schema))
        for seed in range(args.num_seeds):
            times += walk(grammars, structure, seed=seed, most=args.max_tokens).token_ms
    times.sort()
    p50, p99 = percentile_of(times, 50), percentile_of(times, 99)
    print(
        f"{len(TASKS)} schemas, {len(times)} tokens: "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {times[-1]:.2f} ms a token"
    )
    for source in _AMBIGUOUS:
        end = walk(grammars, Structure(kind="grammar", source=source), seed=0, most=1000)
        print(
            f"{source!r}: {len(end.token_ms)} tokens in {sum(end.token_ms) / 1000:.1f} s, the "
            f"longest {max(end.token_ms):.0f} ms; {end.error or 'followed to its end'}"
        )


if __name__ == "__main__":
    main()
