"""A stand-in for CUDA graphs where there is no GPU."""

from collections.abc import Callable


class CallAgain:
    """Captures a call by keeping it: as with a graph, only the contents of buffers may change."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        run()

        def replay() -> None:
            self.num_replays += 1
            run()

        return replay
