"""Seconds of device work: from events on a GPU, from the clock elsewhere."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from engine.worker.cuda_graph import CudaCapture

_COLD_BYTES = 512 * 2**20  # more than any cache holds
_MOST_COPIES = 128


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    calls: Sequence[Callable[[], object]], device: torch.device, *, repeats: int = 5
) -> float:
    """Median time of one call, the calls made in turn (over data that no cache holds all of).

    On a GPU they are captured as one graph, so that launching does not count.
    """
    if device.type != "cuda":
        for call in calls:
            call()
        times = []
        for _ in range(repeats):
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
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[1:]) / len(calls)


def copies_for(num_bytes: int) -> int:
    """How many weights of that size to go round, so that no cache holds them."""
    return max(1, min(_MOST_COPIES, -(-_COLD_BYTES // num_bytes)))


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of a copy on the device, read and written counted: the faster of torch's
    copy, which the driver makes as it likes, and of a kernel that reads and writes as much.
    """
    source = torch.empty(num_bytes // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.bitwise_not(source, out=target))
    return 2 * num_bytes / min(seconds([way] * 3, device) for way in ways)
