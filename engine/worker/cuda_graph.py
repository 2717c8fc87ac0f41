"""Captures CUDA graphs; the only part of capture and replay that needs a GPU."""

from collections.abc import Callable

import torch


class CudaCapture:
    """Implements `capture.Capture`.

    All graphs share one memory pool: only one runs at a time, and nobody reads what one leaves
    outside the given buffers.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once, so that kernels are compiled and chosen, then capture; return the replay."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # What torch allocates for the first capture serves the whole process. Allocated in
        # inference mode, it could not be written by captures outside that mode, such as a
        # compiler's (pytorch #166792).
        mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
        with torch.inference_mode(False), torch.cuda.graph(graph, pool=self._pool), mode():
            run()
        return graph.replay
