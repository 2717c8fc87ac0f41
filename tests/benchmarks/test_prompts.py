from collections import Counter

import pytest

from benchmarks.prompts import choose_prompts


def test_built_in_prompts_cover_six_tasks_alike():
    counts = Counter(prompt.task for prompt in choose_prompts(None, None))

    assert counts == dict.fromkeys(("math", "summarize", "qa", "write", "instruct", "code"), 5)


def test_tasks_take_turns(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [("a", 1), ("a", 2), ("a", 3), ("b", 4)]
    file.write_text("".join(f'{{"task": "{task}", "prompt": "{n}"}}\n' for task, n in rows))

    assert [prompt.text for prompt in choose_prompts(file, 2)] == ["1", "4", "2"]


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.jsonl: No such file"):
        choose_prompts(tmp_path / "no.jsonl", None)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match="no prompt"):
        choose_prompts(empty, None)
