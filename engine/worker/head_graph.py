"""Exit heads as CUDA graphs; `graph_runner` says what graphs are for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.exit_head import Head
from engine.worker.capture import CAPTURED_COUNTS, Capture, Replay, fitting

_LONGEST_RUN = 16  # most tokens of a single row's run that a captured head follows


@dataclass(frozen=True, slots=True)
class _HeadRoom:
    """Views of a head's buffers for a call of one size, and the graph that reads them."""

    replay: Replay
    padding: Tensor
    inputs: Tensor
    states: Tensor
    logits: Tensor
    other: Tensor


class HeadGraph:
    """An exit head that replays graphs; see `ExitHead` for what it computes.

    There are graphs for runs of one token each, as many rows have, and graphs for a single run of
    several tokens, as one row has after a look-up.
    """

    def __init__(
        self,
        head: Head,
        like: Tensor,
        capture: Capture,
        token_counts: Sequence[int] = CAPTURED_COUNTS,
    ) -> None:
        """
        Args:
            like: [1, E], a tensor of the model's data type and device.
        """
        self._head = head
        self._token_counts = token_counts
        self._run_lengths = [count for count in token_counts if 1 < count <= _LONGEST_RUN]
        self._capture = capture
        # Made as ordinary tensors even in inference mode, so that any call may write them.
        with torch.inference_mode(False):
            # A graph's previous states, followed by its hidden states.
            self._inputs = like.new_zeros(2 * token_counts[-1], like.shape[1])
            self._padding = like.new_zeros(token_counts[-1], like.shape[1])
        self._replays: dict[tuple[int, int], tuple[Replay, tuple[Tensor, Tensor, Tensor]]] = {}
        self._rooms: dict[tuple[int, int], _HeadRoom | None] = {}  # by tokens and runs

    @property
    def exit_layer(self) -> int:
        """The layer whose hidden states the head reads."""
        return self._head.exit_layer

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture the head for every number of tokens."""
        for count in reversed(self._token_counts):
            self._captured(count, count)
        for count in reversed(self._run_lengths):
            self._captured(1, count)

    def __call__(
        self, hidden: Tensor, previous: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `ExitHead.__call__`; logits are valid until the next call."""
        key = (hidden.shape[0], len(lengths))
        if key not in self._rooms:
            self._rooms[key] = self._room(*key)
        room = self._rooms[key]
        if room is None:  # run eagerly
            return self._head(hidden, previous, lengths)
        torch.cat((previous, room.padding, hidden), out=room.inputs)  # one launch
        room.replay()
        # Rows keep their states until their next draft.
        return room.states.clone(), room.logits, room.other

    def _room(self, num_tokens: int, num_runs: int) -> _HeadRoom | None:
        """Return the views and the graph for a call of this size; None if there is no graph."""
        is_run = num_runs == 1 < num_tokens
        count = fitting(self._run_lengths if is_run else self._token_counts, num_tokens)
        if count is None or 1 < num_runs < num_tokens:
            return None
        num_previous = 1 if is_run else count
        replay, results = self._captured(num_previous, count)
        states, logits, other = (result[:num_tokens] for result in results)
        padding = self._padding[num_runs:num_previous]
        inputs = self._inputs[: num_previous + num_tokens]
        return _HeadRoom(replay, padding, inputs, states, logits, other)

    def _captured(self, num_runs: int, count: int) -> tuple[Replay, tuple[Tensor, Tensor, Tensor]]:
        """Return the graph for `count` tokens in equally long runs, and its result buffers."""
        key = (num_runs, count)
        if key not in self._replays:
            previous, hidden = self._inputs[: num_runs + count].split((num_runs, count))
            inputs = (hidden, previous, [count // num_runs] * num_runs)
            with torch.inference_mode(False), torch.no_grad():
                shapes = self._head(*inputs)
                results = tuple(torch.empty_like(result) for result in shapes)

            def run() -> None:
                for buffer, result in zip(results, self._head(*inputs), strict=True):
                    buffer.copy_(result)

            states, logits, other = results
            self._replays[key] = (self._capture(run), (states, logits, other))
        return self._replays[key]
