"""Measures plain decoding of the big model.

It is compared with the memory bandwidth, with transformers, and with itself without exact rows or
without CUDA graphs.
"""

import copy

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.generation import generate, generate_with_transformers
from benchmarks.gpu.kernels import pass_seconds
from benchmarks.gpu.report import Part
from benchmarks.gpu.shapes import transformers_model
from benchmarks.gpu.timing import copy_bandwidth
from engine.model.ops.cuda_ops import CudaOps


def measure(bench: Bench, part: Part) -> None:
    """Measure one stream with a prompt of the benchmark's length."""
    model = bench.big
    prompts = [model.prompt(bench.context)]
    engine = bench.engine(model, max_rows=1)
    generate(engine, prompts, 4, early_exit=False)
    timed = generate(engine, prompts, bench.length, early_exit=False)
    part.add("plain, one stream", timed.tokens_per_s, "tok/s")
    bandwidth = copy_bandwidth(bench.device, 1 << 22 if bench.is_quick else 1 << 31)
    share = model.pass_bytes * timed.tokens_per_s / bandwidth
    part.add("weights read / copy bandwidth", share, least=0.8 if bench.is_cuda else None)
    on_device = pass_seconds(bench, model, 1)
    part.add("a pass on the device", on_device * 1e3, "ms")
    part.add("host's part of a step", (1 / timed.tokens_per_s - on_device) * 1e3, "ms")
    for count in (6,) if bench.is_quick else (2, 4, 6, 16, 17, 32, 64):
        part.add(
            f"a pass of {count} tokens / of one", pass_seconds(bench, model, count) / on_device, "x"
        )
    del engine
    bench.release()
    engine = bench.engine(model, max_rows=1, enforce_eager=True)
    eager = generate(engine, prompts, bench.length // 2, early_exit=False)
    del engine
    part.add("graphs / launched one by one", timed.tokens_per_s / eager.tokens_per_s, "x")
    if isinstance(model.ops, CudaOps):
        _without_exact_rows(bench, part, timed.tokens_per_s)


def _without_exact_rows(bench: Bench, part: Part, exact: float) -> None:
    """Measure what exact rows cost, by using cuBLAS on the same weights."""
    model = bench.big
    free = copy.copy(model.decoder)
    free.ops = CudaOps(model.ops.dtype, exact=False)
    engine = bench.engine(model, decoder=free)
    prompts = [model.prompt(bench.context)]
    generate(engine, prompts, 4, early_exit=False)
    rate = generate(engine, prompts, bench.length, early_exit=False).tokens_per_s
    part.add("plain with cuBLAS, one stream", rate, "tok/s")
    part.add("exact rows / cuBLAS", exact / rate, "x")
    many = [model.prompt(64, number) for number in range(16)]
    rate = generate(engine, many, bench.length, early_exit=False).tokens_per_s
    del engine
    ours = generate(bench.engine(model), many, bench.length, early_exit=False).tokens_per_s
    part.add("exact rows / cuBLAS, 16 streams", ours / rate, "x")


def against_transformers(bench: Bench, part: Part) -> None:
    """Run the same weights and prompt in transformers, eager and compiled with a static cache."""
    model = bench.big
    prompt = model.prompt(bench.context)
    engine = bench.engine(model, max_rows=1)
    generate(engine, [prompt], 4, early_exit=False)
    ours = generate(engine, [prompt], bench.length, early_exit=False)
    del engine
    bench.release()
    theirs = transformers_model(model.shape, model.spec, bench.device, model.ops.dtype)
    with torch.inference_mode():
        generate_with_transformers(theirs, prompt, 4, bench.device)
        eager = generate_with_transformers(theirs, prompt, bench.length // 4, bench.device)
    part.add("transformers, eager", eager.tokens_per_s, "tok/s")
    least = 3.0 if bench.is_cuda else None
    part.add("plain / transformers eager", ours.tokens_per_s / eager.tokens_per_s, "x", least=least)
    agreed = 0
    for mine, other in zip(ours.token_ids[0], eager.token_ids[0], strict=False):
        if mine != other:
            break
        agreed += 1
    part.add("first tokens that agree with transformers'", agreed, f"of {bench.length // 4}")
    if not bench.is_cuda:
        return
    options = {"cache_implementation": "static"}
    for _ in range(2):  # the first run compiles
        compiled = generate_with_transformers(
            theirs, prompt, bench.length, bench.device, num_untimed=16, **options
        )
    part.add("transformers, static cache, compiled", compiled.tokens_per_s, "tok/s")
    part.add(
        "plain / transformers compiled", ours.tokens_per_s / compiled.tokens_per_s, "x", least=1.1
    )
