"""Measures early exits on the big model at chosen acceptance rates.

The heads are evaluated for their cost, but which of their drafts are right is scripted.
"""

from dataclasses import replace

from benchmarks.gpu.bench import Bench, num_different
from benchmarks.gpu.generation import generate
from benchmarks.gpu.report import Part
from benchmarks.gpu.scripted_heads import ScriptedHeads
from engine.model.exit_head import load_heads
from engine.worker.cuda_graph import CudaCapture
from engine.worker.head_graph import HeadGraph
from engine.worker.sampler import Sampler

_PAPERS_ACCEPTANCE = 0.94  # in the paper 5 to 6 % of early predictions are rejected
_TARGET = 1.73  # the paper's best speed-up


def measure(bench: Bench, part: Part) -> None:
    """Measure the speed-up of one stream by exit layer, acceptance and share of drafting tokens."""
    model = bench.big
    prompt = model.prompt(bench.context)
    engine = bench.engine(model, max_rows=1)
    generate(engine, [prompt], 4, early_exit=False)
    plain = generate(engine, [prompt], bench.length, early_exit=False)
    part.add("plain", plain.tokens_per_s, "tok/s")
    del engine
    best = 0.0
    for layer in bench.exit_layers:
        drafter = scripted_heads(bench, [layer])
        drafter.outputs = {prompt: prompt + plain.token_ids[0]}
        engine = bench.engine(model, drafter, max_rows=1)
        generate(engine, [prompt], 4, early_exit=True)
        for coverage, acceptance in _grid(bench):
            drafter.coverage, drafter.acceptance = coverage, acceptance
            timed = generate(engine, [prompt], bench.length, early_exit=True)
            speedup = timed.tokens_per_s / plain.tokens_per_s
            changed = num_different(timed.token_ids, plain.token_ids)
            part.add(
                f"exit at {layer}, {coverage:.0%} of tokens draft, {acceptance:.0%} right",
                speedup,
                "x" if changed == 0 else "x, CHANGED",
                is_met=None if changed == 0 else False,
                at={"exit": layer, "coverage": coverage, "acceptance": acceptance},
            )
            if acceptance == _PAPERS_ACCEPTANCE:
                best = max(best, speedup)
        del engine, drafter
        bench.release()
    least = _TARGET if bench.is_cuda else None
    part.add(f"best at {_PAPERS_ACCEPTANCE:.0%} right", best, "x", least=least)


def batches(bench: Bench, part: Part) -> None:
    """Measure many streams at once, with scripted drafts and with the policy on poor heads."""
    model, layer = bench.big, bench.exit_layers[1]
    drafter = scripted_heads(bench, [layer])
    drafter.coverage, drafter.acceptance = 0.7, _PAPERS_ACCEPTANCE
    engines = {
        "plain": bench.engine(model),
        "70 % draft, 94 % right, no policy": bench.engine(model, drafter),
        "untrained heads, policy": bench.engine(model, heads=bench.heads(model, [layer])),
    }
    for batch in (1, 4) if bench.is_quick else (1, 4, 16, 64):
        prompts = [model.prompt(64 if not bench.is_quick else 8, n) for n in range(batch)]
        rates, outputs = {}, {}
        for name, engine in engines.items():
            timed = generate(engine, prompts, bench.length, early_exit=name != "plain")
            rates[name], outputs[name] = timed.tokens_per_s, timed.token_ids
            if name == "plain":
                drafter.outputs = {
                    p: p + ids for p, ids in zip(prompts, timed.token_ids, strict=True)
                }
                part.add(f"{batch} streams, plain", timed.tokens_per_s, "tok/s")
                continue
            changed = num_different(outputs[name], outputs["plain"])
            has_policy = name.endswith("policy") and "no" not in name
            part.add(
                f"{batch} streams, {name}",
                rates[name] / rates["plain"],
                "x" if changed == 0 else f"x, {changed} CHANGED",
                least=0.98 if has_policy and bench.is_cuda else None,
            )


def scripted_heads(bench: Bench, exit_layers: list[int]) -> ScriptedHeads:
    """Return scripted heads of the big model, captured as CUDA graphs on a GPU."""
    model = bench.big
    heads = load_heads(bench.heads(model, exit_layers), model.decoder)
    if bench.is_cuda:
        like, capture = model.decoder.final_norm[None], CudaCapture()
        graphs = [HeadGraph(head, like, capture) for head in heads.heads]
        for graph in graphs:
            graph.prepare()
        heads = replace(heads, heads=graphs)
    return ScriptedHeads(heads, Sampler(model.ops), model.shape.vocabulary)


def _grid(bench: Bench) -> list[tuple[float, float]]:
    """Return pairs of the share of tokens that draft and the share of drafts that are right."""
    if bench.is_quick:
        return [(1.0, 1.0), (0.7, _PAPERS_ACCEPTANCE), (1.0, 0.0)]
    rates = (1.0, _PAPERS_ACCEPTANCE, 0.85, 0.7, 0.5, 0.0)
    shares = (0.85, 0.7, 0.5)
    return [(1.0, rate) for rate in rates] + [(share, _PAPERS_ACCEPTANCE) for share in shares]
