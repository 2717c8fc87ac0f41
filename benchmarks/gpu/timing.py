"""Times device work: by events on a GPU, by the clock elsewhere."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from engine.worker.cuda_graph import CudaCapture

_COLD_BYTES = 512 * 2**20  # more than any cache holds
_MOST_COPIES = 128
_REPEATS = 5  # whose median counts


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Return the median time of one call, where all calls are made in turn.

    On a GPU they are captured as one graph, so that launching does not count.

    Args:
        calls: Calls on different data, together more than caches hold, if it is to be cold.
    """
    if device.type != "cuda":
        for call in calls:
            call()
        times = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            for call in calls:
                call()
            times.append(time.perf_counter() - started)
        return statistics.median(times) / len(calls)

    def run() -> None:
        for call in calls:
            call()

    replay = CudaCapture()(run)
    times = []
    for _ in range(_REPEATS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[1:]) / len(calls)


def copies_for(num_bytes: int) -> int:
    """Return how many weights of a size to use in turn so that no cache holds them all."""
    return max(1, min(_MOST_COPIES, -(-_COLD_BYTES // num_bytes)))


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Return the bytes per second that a copy on the device reads and writes.

    It is the faster of torch's copy, whose way the driver chooses, and of a kernel that reads and
    writes as much.
    """
    source = torch.empty(num_bytes // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target))
    return 2 * num_bytes / min(seconds([way] * 3, device) for way in ways)
