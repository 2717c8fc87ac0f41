"""The time and memory that loading a worker takes: `python -m benchmarks.loading`.

A run measures one form of weights. Peak and final resident memory are those of this process, as
Linux counts them. Needs torch only.
"""

import argparse
import time
from pathlib import Path

from benchmarks.machine import describe_machine, print_facts
from engine.checkpoint import find_heads, resolve_model
from engine.config import EngineConfig, ExitsConfig, ModelConfig
from engine.worker.worker import ModelWorker


def main() -> None:
    """Print seconds and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--quantization", choices=("auto", "none", "int8", "q4"), default="auto")
    args = parser.parse_args()
    directory = resolve_model(args.model)
    config = EngineConfig(
        model=ModelConfig(
            directory=directory, device="cpu", dtype=args.dtype, quantization=args.quantization
        ),
        exits=ExitsConfig(heads=find_heads(args.model, directory)),
    )
    print_facts(describe_machine())
    before = resident_megabytes()["VmRSS"]
    started = time.perf_counter()
    worker = ModelWorker(config)
    seconds = time.perf_counter() - started
    memory = resident_megabytes()
    ratio = memory["VmHWM"] / memory["VmRSS"]
    print(f"{'weights':<12} {worker.info.numbers}")
    print(f"{'loaded in':<12} {seconds:.1f} s, imports before it not counted")
    print(f"{'memory':<12} {memory['VmRSS']} MB, {before} MB of them before loading")
    print(f"{'peak':<12} {memory['VmHWM']} MB, {ratio:.2f} of the final")


def resident_megabytes() -> dict[str, int]:
    """Return this process's resident memory in MiB: now (VmRSS) and at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}


if __name__ == "__main__":
    main()
