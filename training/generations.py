"""The model's own output, as a JSON-lines file that can be resumed: one row per finished
generation.

Row: {"task": str, "prompt_ids": [int], "output_ids": [int], "temperature": float}.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path

_HELD_OUT_EVERY = 25


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and what the model said."""

    task: str
    prompt_ids: list[int]
    output_ids: list[int]
    temperature: float


def read_generations(path: Path) -> list[Generation]:
    """All rows; a last line cut short by a kill is dropped."""
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
    if path.is_file() and (text := path.read_text()) and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
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


def is_held_out(index: int) -> bool:
    """Whether the generation in this place is kept from training; the same ones on every run."""
    return index % _HELD_OUT_EVERY == 0


def split_held_out(rows: Sequence[Generation]) -> tuple[list[Generation], list[Generation]]:
    """(training, held out)."""
    training = [row for i, row in enumerate(rows) if not is_held_out(i)]
    return training, [row for i, row in enumerate(rows) if is_held_out(i)]


def num_output_tokens(rows: Sequence[Generation]) -> int:
    """Self-generated tokens in all."""
    return sum(len(row.output_ids) for row in rows)


def reduced_vocabulary(rows: Sequence[Generation], size: int) -> tuple[list[int], float]:
    """The most frequent token ids of the model's own output.

    Returns:
        At most `size` ids, ascending, and the share of all output tokens they cover.
    """
    counts = Counter(token for row in rows for token in row.output_ids)
    kept = counts.most_common(size)
    covered = sum(count for _, count in kept) / max(1, sum(counts.values()))
    return sorted(token for token, _ in kept), covered


def choose_sample(rows: Sequence[Generation], num_tokens: int) -> list[Generation]:
    """The first generations that have so many tokens."""
    ends = list(accumulate(len(row.output_ids) for row in rows))
    return list(rows[: bisect_left(ends, num_tokens) + 1])


def choose_prompts(rows: Sequence[Generation], count: int) -> list[list[int]]:
    """Prompts of different tasks, as far as there are any."""
    by_task: dict[str, list[list[int]]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.prompt_ids)
    turns = zip_longest(*by_task.values())
    picked = [prompt for turn in turns for prompt in turn if prompt is not None]
    return picked[:count]
