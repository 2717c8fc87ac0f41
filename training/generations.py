"""The model's own output as a JSON-lines file that a killed run can go on with.

Each finished generation is one line:
{"task": str, "prompt_ids": [int], "output_ids": [int], "temperature": float}.
"""

import json
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path

_HELD_OUT_EVERY = 25


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and the model's output."""

    task: str
    prompt_ids: list[int]
    output_ids: list[int]
    temperature: float


def read_generations(path: Path) -> list[Generation]:
    """Read all rows; a last line cut short by a kill is dropped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(Generation(**json.loads(line)))
        except json.JSONDecodeError:
            break
    return rows


def append_generations(path: Path, rows: Sequence[Generation]) -> None:
    """Add rows and flush them to disk; a last line cut short by a kill is removed first."""
    _end_line(path)
    with path.open("a") as file:
        for row in rows:
            fields = {
                "task": row.task,
                "prompt_ids": row.prompt_ids,
                "output_ids": row.output_ids,
                "temperature": row.temperature,
            }
            file.write(json.dumps(fields) + "\n")
        file.flush()


def _end_line(path: Path) -> None:
    """Remove an incomplete last line."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


class HeldOut:
    """Decides, one generation after the other, which are held out from training.

    The same ones are on every run, and all answers to one prompt share the decision.
    """

    def __init__(self) -> None:
        self._by_prompt: dict[tuple[int, ...], bool] = {}
        self._num_rows = 0

    def takes(self, row: Generation) -> bool:
        """Whether the next generation is held out."""
        is_due = self._num_rows % _HELD_OUT_EVERY == 0
        self._num_rows += 1
        return self._by_prompt.setdefault(tuple(row.prompt_ids), is_due)


def split_held_out(rows: Sequence[Generation]) -> tuple[list[Generation], list[Generation]]:
    """Return the generations to train on, and those held out."""
    held_out = HeldOut()
    split: dict[bool, list[Generation]] = {False: [], True: []}
    for row in rows:
        split[held_out.takes(row)].append(row)
    return split[False], split[True]


def num_output_tokens(rows: Sequence[Generation]) -> int:
    """Return how many tokens the model has generated."""
    return sum(len(row.output_ids) for row in rows)


def reduced_vocabulary(rows: Sequence[Generation], size: int) -> list[int]:
    """Return the at most `size` most frequent token ids of the model's output, ascending."""
    counts = Counter(token for row in rows for token in row.output_ids)
    return sorted(token for token, _ in counts.most_common(size))


def coverage(rows: Sequence[Generation], token_ids: Collection[int]) -> float:
    """Return the share of all output tokens that are among the ids."""
    kept = frozenset(token_ids)
    num_kept = sum(token in kept for row in rows for token in row.output_ids)
    return num_kept / max(1, num_output_tokens(rows))


def choose_sample(rows: Sequence[Generation], num_tokens: int) -> list[Generation]:
    """Return the first generations that together have at least `num_tokens` output tokens."""
    ends = list(accumulate(len(row.output_ids) for row in rows))
    return list(rows[: bisect_left(ends, num_tokens) + 1])


def choose_prompts(rows: Sequence[Generation], count: int) -> list[list[int]]:
    """Return up to `count` prompts, taken from each task in turn."""
    by_task: dict[str, list[list[int]]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.prompt_ids)
    turns = zip_longest(*by_task.values())
    picked = [prompt for turn in turns for prompt in turn if prompt is not None]
    return picked[:count]
