"""Exit heads as graphs; see `graph_runner` for what that is for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.exit_head import Head
from engine.worker.capture import TOKEN_COUNTS, Capture, Replay, fitting

_LONGEST_RUN = 16  # tokens of one stream that a captured head follows


@dataclass(frozen=True, slots=True)
class _HeadRoom:
    """Where the tokens of a call lie in a head's buffers, and the graph that reads them there."""

    replay: Replay
    padding: Tensor
    inputs: Tensor
    states: Tensor
    logits: Tensor
    other: Tensor


class HeadGraph:
    """An exit head that is replayed; see `ExitHead` for what it computes.

    There are graphs for tokens that each begin a run, as many streams have them, and graphs for one
    run of several, as one stream has behind what it looked up.
    """

    def __init__(
        self, head: Head, like: Tensor, capture: Capture, token_counts: Sequence[int] = TOKEN_COUNTS
    ) -> None:
        """Args:
        like: [1, E], of the model's data type and device.
        """
        self._head = head
        self._token_counts = token_counts
        self._run_lengths = [count for count in token_counts if 1 < count <= _LONGEST_RUN]
        self._capture = capture
        # Buffers are ordinary tensors, whatever mode they are made in: any call may write them.
        with torch.inference_mode(False):
            # A graph's previous states, and behind them its hidden states.
            self._inputs = like.new_zeros(2 * token_counts[-1], like.shape[1])
            self._padding = like.new_zeros(token_counts[-1], like.shape[1])
        self._replays: dict[tuple[int, int], tuple[Replay, tuple[Tensor, Tensor, Tensor]]] = {}
        self._rooms: dict[tuple[int, int], _HeadRoom | None] = {}  # by tokens and runs

    @property
    def exit_layer(self) -> int:
        """The layer whose hidden states it reads."""
        return self._head.exit_layer

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture it for every number of tokens."""
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
        if room is None:  # called, token by token of every run
            return self._head(hidden, previous, lengths)
        torch.cat((previous, room.padding, hidden), out=room.inputs)  # one launch
        room.replay()
        # Rows keep their state until their next draft.
        return room.states.clone(), room.logits, room.other

    def _room(self, num_tokens: int, num_runs: int) -> _HeadRoom | None:
        """Where so many tokens lie, and their graph; None: there is none."""
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
        """So many tokens, all of one run or each of its own."""
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
