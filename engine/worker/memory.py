"""Determines how much memory the KV cache may take: what weights and the largest step leave."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from engine.errors import ModelLoadError
from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache, TokenBatch

DEFAULT_GPU_UTILIZATION = 0.9
_CPU_SHARE = 0.25  # share of free memory; the rest is for the system and its file cache


def free_bytes(device: torch.device) -> int:
    """Return the bytes that could be allocated now."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    with suppress(OSError):  # memory that the system would reclaim counts as free
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cpu_budget() -> int:
    """Return the bytes for the KV cache on a CPU."""
    return int(free_bytes(torch.device("cpu")) * _CPU_SHARE)


def gpu_budget(utilization: float, num_free: int, num_total: int) -> int:
    """Return the bytes for the KV cache on a GPU.

    The largest step must have been run, so that nothing else will grow.

    Args:
        utilization: Share of the GPU's memory that may be in use, by other processes as well.
        num_free: Free bytes, without what torch keeps for its next allocations.
        num_total: Bytes of the GPU's memory.

    Raises:
        ModelLoadError: Nothing is left.
    """
    budget = int(utilization * num_total) - (num_total - num_free)
    if budget <= 0:
        raise ModelLoadError(
            f"--gpu-memory-utilization {utilization}: nothing is left for the KV cache: "
            f"{(num_total - num_free) / 2**30:.1f} of {num_total / 2**30:.1f} GiB are in use by "
            "weights, activations and other processes"
        )
    return budget


@torch.inference_mode()
def run_largest(decoder: Decoder, num_tokens: int, num_logits: int) -> None:
    """Run one layer and the LM head on as many tokens as a step can have.

    All layers need the same memory.
    """
    spec, ops = decoder.spec, decoder.ops
    shape = (1, spec.num_kv_heads, spec.head_size)
    places = torch.zeros(num_tokens, dtype=torch.int32, device=ops.device)
    empty = torch.zeros(shape, dtype=ops.dtype, device=ops.device)
    cache = [LayerCache(keys=empty, values=empty.clone())]
    batch = TokenBatch(
        positions=places, slots=places, rows=places, block_tables=places[:1, None], block_size=1
    )
    decoder.run(decoder.embed(places), Segment(0, 1), cache, batch)
    logits = decoder.logits(empty.new_zeros(num_logits, spec.hidden_size))
    logits.softmax(-1).log()  # sampling holds two more tensors of that size
