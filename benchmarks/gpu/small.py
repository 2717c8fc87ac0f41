"""Measures SmolLM2-135M, or random weights of its shape if the model is not here.

Figures are its speed, and whether the tokens are the same with early exits on and off.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, num_different
from benchmarks.gpu.generation import Prompt, Timed, generate, generate_with_transformers
from benchmarks.gpu.report import Part
from benchmarks.gpu.shapes import transformers_model
from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.checkpoint import find_heads
from engine.config import ExitsConfig
from engine.model.decoder import Decoder
from engine.model.exact_rows import uneven_counts
from engine.model.spec import ModelSpec
from engine.offline import OfflineEngine
from engine.worker.backend import select_ops
from engine.worker.worker import ModelWorker

_PROMPTS = 20  # prompts that are timed one by one
_AT_ONCE = 16
_TEMPERATURES = (0.0, 0.8)
_BATCHES = (1, 4, 16, 64)
_ROUNDS = 6  # of many streams; the first does not count, the others as one


def measure(bench: Bench, part: Part) -> None:
    """Measure trained heads on real weights, or untrained heads and scripts on random ones."""
    if bench.model is None:
        part.add("weights", "random: what trained heads bring is not measured")
        model = bench.small
        prompts = [model.prompt(24, number) for number in range(2 if bench.is_quick else 8)]
        layers = [2] if bench.is_quick else [3]
        engine = bench.engine(model, heads=bench.heads(model, layers))
    else:
        heads = find_heads(bench.model.name, bench.model)
        part.add("weights", bench.model.name if heads else f"{bench.model.name}, no heads")
        prompts = _real_prompts(bench, _PROMPTS)
        engine = _engine(bench, part, bench.model, heads)
    plain_rate = 0.0
    for temperature in _TEMPERATURES:
        plain, early = (
            [
                generate(engine, [p], bench.length, early_exit=on, temperature=temperature)
                for p in prompts
            ]
            for on in (False, True)
        )
        rate = _rate(plain)
        plain_rate = plain_rate or rate
        part.add(f"plain, temperature {temperature:g}", rate, "tok/s")
        part.add(f"early exits, temperature {temperature:g}", _rate(early), "tok/s")
        part.add(f"early exits / plain, temperature {temperature:g}", _rate(early) / rate, "x")
        _judge(part, f"alone, temperature {temperature:g}", _outputs(plain), _outputs(early))
        if bench.model is None:
            _scripted(bench, part, engine, prompts, temperature)
    _against_transformers(bench, part, plain_rate, prompts[0])
    _batches(bench, part, engine, prompts)
    if bench.model is not None:
        _all_prompts(bench, part, engine)


def _engine(bench: Bench, part: Part, directory: Path, heads: Path | None) -> OfflineEngine:
    """Make an engine for the real weights; rows that are not exact are reported, not refused."""
    ops = select_ops(bench.config(directory), ModelSpec.from_directory(directory))
    decoder = Decoder.load(directory, ops)
    uneven = uneven_counts(decoder)
    verdict = f"uneven at {uneven}" if uneven else "exact"
    part.add("rows of these weights", verdict, is_met=not uneven)
    config = bench.config(directory, exits=ExitsConfig(heads=heads, lookup=False), exact=False)
    return OfflineEngine(config, ModelWorker(config, decoder=decoder))


def _all_prompts(bench: Bench, part: Part, engine: OfflineEngine) -> None:
    """Compare the tokens with early exits on and off for all prompts, many at once."""
    prompts = _real_prompts(bench, None)
    for temperature in _TEMPERATURES:
        plain: list[tuple[int, ...]] = []
        early: list[tuple[int, ...]] = []
        for start in range(0, len(prompts), _AT_ONCE):
            some = prompts[start : start + _AT_ONCE]
            for on, outputs in ((False, plain), (True, early)):
                timed = generate(engine, some, bench.length, early_exit=on, temperature=temperature)
                outputs += timed.token_ids
        _judge(part, f"{_AT_ONCE} at once, temperature {temperature:g}", plain, early)


def _scripted(
    bench: Bench,
    part: Part,
    engine: OfflineEngine,
    prompts: Sequence[Prompt],
    temperature: float,
) -> None:
    """Compare the tokens of all prompts in one batch, with scripted drafts at every exit."""
    model = bench.small
    plain = generate(engine, prompts, bench.length, early_exit=False, temperature=temperature)
    script = {p: p + ids for p, ids in zip(prompts, plain.token_ids, strict=True)}
    agreements: tuple[Agreement, ...] = ("always", "sometimes", "never")
    for agreement in agreements:
        layers = [2, 4] if bench.is_quick else [3, 12]
        drafter = ScriptedDrafter(layers, script, agreement, model.shape.vocabulary)
        drafting = bench.engine(model, drafter)
        early = generate(drafting, prompts, bench.length, early_exit=True, temperature=temperature)
        name = f"drafts {agreement} right, temperature {temperature:g}"
        _judge(part, name, plain.token_ids, early.token_ids)


def _judge(
    part: Part, name: str, plain: Sequence[Sequence[int]], early: Sequence[Sequence[int]]
) -> None:
    changed = num_different(plain, early)
    part.add(f"outputs changed of {len(plain)}, {name}", changed, is_met=changed == 0)


def _rate(runs: Sequence[Timed]) -> float:
    return sum(run.num_timed for run in runs) / sum(run.duration_s for run in runs)


def _outputs(runs: Sequence[Timed]) -> list[tuple[int, ...]]:
    return [ids for run in runs for ids in run.token_ids]


def _real_prompts(bench: Bench, count: int | None) -> list[Prompt]:
    """Return the first `count` prompts; None: all."""
    from benchmarks.prompts import choose_prompts, encode_prompts

    assert bench.model is not None
    texts = choose_prompts(bench.prompts, None)[: 2 if bench.is_quick else count]
    return [entry.token_ids for entry in encode_prompts(texts, bench.model)]


def _against_transformers(bench: Bench, part: Part, rate: float, prompt: Prompt) -> None:
    with torch.inference_mode():
        theirs = _transformers(bench)
        generate_with_transformers(theirs, prompt, 4, bench.device)
        eager = generate_with_transformers(theirs, prompt, bench.length // 2, bench.device)
    part.add("transformers, eager", eager.tokens_per_s, "tok/s")
    least = 5.0 if bench.is_cuda else None
    part.add("plain / transformers eager", rate / eager.tokens_per_s, "x", least=least)


def _transformers(bench: Bench) -> Any:
    if bench.model is None:
        model = bench.small
        return transformers_model(model.shape, model.spec, bench.device, model.ops.dtype)
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bench.is_cuda else torch.float32
    model = AutoModelForCausalLM.from_pretrained(str(bench.model), dtype=dtype)
    return model.to(bench.device).eval()


def _batches(bench: Bench, part: Part, engine: OfflineEngine, prompts: Sequence[Prompt]) -> None:
    """Measure many streams at once: early exits must never be slower than plain decoding.

    A round takes a fifth of a second at most, less than the policy lets pass between two trials of
    what did not pay: only several rounds have their share of them.
    """
    for batch in _BATCHES[:2] if bench.is_quick else _BATCHES:
        some = [prompts[number % len(prompts)] for number in range(batch)]
        runs: dict[bool, list[Timed]] = {False: [], True: []}
        for on in (False, True) * _ROUNDS:
            runs[on].append(generate(engine, some, bench.length, early_exit=on))
        plain, early = (_rate(runs[on][1:]) for on in (False, True))
        part.add(f"{batch} streams, plain", plain, "tok/s")
        least = 0.98 if bench.is_cuda else None
        part.add(f"{batch} streams, early exits / plain", early / plain, "x", least=least)
