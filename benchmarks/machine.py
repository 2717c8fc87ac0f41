"""Describes the machine of a measurement, without which its figures mean nothing."""

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine() -> dict[str, str]:
    """Return hardware, versions and load, in the order of printing."""
    facts = {
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        facts["gpu"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    facts["system"] = (
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    facts["versions"] = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers"))
    facts["load"] = f"{os.getloadavg()[0]:.1f} before the start"
    return facts


def print_facts(facts: Mapping[str, str]) -> None:
    """Print one aligned line per fact."""
    for name, text in facts.items():
        print(f"{name:<12} {text}")


def read_bandwidth(repeats: int = 9) -> float:
    """Return the GB/s that torch's sum reads from memory with its threads, the best of a few."""
    values = torch.ones(2**26)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - started)
    return values.numel() * 4 / best / 1e9


def _cpu_model() -> str:
    """Return the CPU's name from Linux's /proc, or what the platform module says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
