"""Stored generations survive a kill in mid-line, and are split in the same way every time."""

from pathlib import Path

from training.generations import (
    Generation,
    append_generations,
    choose_prompts,
    choose_sample,
    coverage,
    num_output_tokens,
    read_generations,
    reduced_vocabulary,
    split_held_out,
)

ROWS = [Generation("qa", [1, i], [3, 4, 3, i], 0.0) for i in range(50)]


def test_round_trip_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    assert read_generations(path) == []
    append_generations(path, ROWS[:2])
    append_generations(path, ROWS[2:3])
    whole = path.read_text()
    path.write_text(whole + '{"task": "qa", "prompt_i')
    assert read_generations(path) == ROWS[:3]
    append_generations(path, ROWS[3:4])
    assert read_generations(path) == ROWS[:4], "the cut line does not swallow what follows it"


def test_held_out_rows_stay_held_out_as_more_come() -> None:
    training, held_out = split_held_out(ROWS)
    assert len(held_out) == 2
    assert not {id(row) for row in training} & {id(row) for row in held_out}
    _, fewer = split_held_out(ROWS[:31])
    assert held_out[: len(fewer)] == fewer


def test_all_answers_to_a_prompt_are_held_out_or_none() -> None:
    again = [Generation("qa", row.prompt_ids, [7, 8], 0.8) for row in ROWS]
    training, held_out = split_held_out([*ROWS, *again[:20]])
    assert held_out == [ROWS[0], ROWS[25], again[0]]
    assert len(training) == 67


def test_reduced_vocabulary_is_the_most_frequent_output() -> None:
    ids = reduced_vocabulary(ROWS, 2)
    assert ids == [3, 4]
    assert coverage(ROWS, ids) == (2 * 50 + 50 + 2) / num_output_tokens(ROWS)


def test_the_sample_is_the_first_so_many_tokens() -> None:
    rows = [Generation("qa", [n], [1] * 10, 0.0) for n in range(5)]
    assert choose_sample(rows, 1) == rows[:1]
    assert choose_sample(rows, 20) == rows[:2]
    assert choose_sample(rows, 21) == rows[:3]
    assert choose_sample(rows, 1000) == rows


def test_timed_prompts_are_of_different_tasks() -> None:
    tasks = ["a", "a", "a", "b", "c", "c"]
    rows = [Generation(task, [n], [1, 2], 0.0) for n, task in enumerate(tasks)]
    assert choose_prompts(rows, 4) == [[0], [3], [4], [1]]
    assert len(choose_prompts(rows, 10)) == 6
    assert choose_prompts([], 3) == []
