"""`python -m benchmarks.masks`: the CPU time that following a structure takes in the worker.

First, each schema of `adadecode bench structured` is followed for some tokens, chosen at random
among those that it allows; then two highly ambiguous grammars are followed until the matcher gives
up. A step waits for each of these masks. Last, whole steps of several rows with drafts are timed:
computing the masks, applying them to the logits and committing all drafts, in a single thread.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.schemas import TASKS
from benchmarks.serve_figures import percentile_of
from engine.checkpoint import resolve_model
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps
from engine.model.spec import ModelSpec
from engine.plan import SequenceStart
from engine.request import GenerationRequest, SamplingParams, Structure
from engine.sequence import Sequence as EngineSequence
from engine.worker.grammars import Grammars
from engine.worker.sample_point import SamplePoint
from engine.worker.sampler import Sampler
from engine.worker.sequence_state import SequenceState
from engine.worker.token_bits import TokenBits

_AMBIGUOUS = (
    "root ::= root root | [a-z ]\n",
    'root ::= s\ns ::= s s | "a" s | s "b" | [a-z] | "(" s ")"\n',
)


@dataclass(frozen=True, slots=True)
class Walk:
    """The figures of following a structure."""

    token_ms: Sequence[float]  # CPU time of each token: computing its mask and committing it
    error: str | None


def walk(grammars: Grammars, structure: Structure, *, seed: int, most: int) -> Walk:
    """Follow a structure to its end, for `most` tokens, or until the matcher gives up."""
    choose = random.Random(seed)
    times: list[float] = []
    state = grammars.open(_start(structure))
    while len(times) < most and state.error is None:
        started = time.thread_time()
        mask = state.allowed((), puts_off_end=True)
        taken = time.thread_time() - started
        allowed = _members(mask)
        if not allowed:
            break
        started = time.thread_time()
        state.append([choose.choice(allowed)])
        times.append(1000 * (taken + time.thread_time() - started))
    return Walk(times, state.error)


class _Stream:
    """A sequence, with a second matcher that chooses its next tokens in advance."""

    def __init__(self, grammars: Grammars, structure: Structure) -> None:
        start = _start(structure)
        self.state = SequenceState(start, grammars.open(start))
        self._scout = grammars.open(start)

    def say(self, choose: random.Random, count: int) -> list[int]:
        """Choose `count` tokens that may follow one another; fewer at the structure's end."""
        said: list[int] = []
        while len(said) < count:
            allowed = _members(self._scout.allowed((), puts_off_end=True))
            if not allowed:
                break
            said.append(choose.choice(allowed))
            self._scout.append(said[-1:])
        return said


def step_ms(
    grammars: Grammars, structures: Sequence[Structure], *, num_drafts: int, num_steps: int
) -> list[float]:
    """Return the CPU time that structures take in each step, with a row for each structure.

    All drafts are right, so that each step commits all of them.
    """
    choose = random.Random(0)
    sampler = Sampler(TorchOps("cpu") if NativeOps.unavailable_reason() else NativeOps(1))
    streams = [_Stream(grammars, structure) for structure in structures]
    vocab_size = grammars.open(_start(structures[0])).vocab_size
    logits = torch.zeros(len(streams) * (num_drafts + 1), vocab_size)
    times = []
    for _ in range(num_steps):
        said = [stream.say(choose, num_drafts + 1) for stream in streams]
        pairs = list(zip((stream.state for stream in streams), said, strict=True))
        points = [SamplePoint(state, ids[:n]) for state, ids in pairs for n in range(len(ids))]
        started = time.process_time()
        sampler.scores(logits[: len(points)], points)
        for state, ids in pairs:
            state.append(ids)
        times.append(1000 * (time.process_time() - started))
        for place, structure in enumerate(structures):
            if len(said[place]) <= num_drafts:
                streams[place] = _Stream(grammars, structure)
    return times


def _members(mask: TokenBits | None) -> list[int]:
    if mask is None:
        return []
    members: list[int] = np.flatnonzero(
        np.unpackbits(mask.view(np.uint8), bitorder="little")
    ).tolist()
    return members


def _start(structure: Structure) -> SequenceStart:
    sampling = SamplingParams(structure=structure, max_tokens=1)
    request = GenerationRequest(request_id="walk", prompt_token_ids=(1,), sampling=sampling)
    return EngineSequence(0, request, (), 2).start()


def main() -> None:
    """Entry point of `python -m benchmarks.masks`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct", metavar="MODEL")
    parser.add_argument("--num-seeds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=60, metavar="N", help="(%(default)s)")
    parser.add_argument("--num-rows", type=int, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--num-drafts", type=int, default=3, metavar="N", help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = resolve_model(args.model)
    spec = ModelSpec.from_directory(directory)
    grammars = Grammars(directory, spec.vocab_size, spec.eos_token_ids)
    times: list[float] = []
    schemas = [Structure(kind="json_schema", source=json.dumps(task.schema)) for task in TASKS]
    for structure in schemas:
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
    rows = [schemas[i % len(schemas)] for i in range(args.num_rows)]
    for num_drafts in (0, args.num_drafts):
        times = sorted(step_ms(grammars, rows, num_drafts=num_drafts, num_steps=40))
        print(
            f"a step of {len(rows)} rows with {num_drafts} drafts each: "
            f"p50 {percentile_of(times, 50):.2f} ms, p99 {percentile_of(times, 99):.2f} ms"
        )


if __name__ == "__main__":
    main()
