from collections import Counter

import pytest
from default_model import default_model_directory
from transformers import AutoTokenizer

from benchmarks.prompts import choose_prompts, encode_prompts


def test_built_in_prompts_cover_six_tasks_alike_and_chats():
    counts = Counter(prompt.task for prompt in choose_prompts(None, None))

    six = dict.fromkeys(("math", "summarize", "qa", "write", "instruct", "code"), 5)
    assert counts == six | {"chat": 10}


@pytest.mark.model
def test_a_chat_is_encoded_whole_and_asks_for_the_next_answer():
    directory = default_model_directory()
    chat = next(p for p in choose_prompts(None, None) if len(p.history) == 4)
    (entry,) = encode_prompts([chat], directory)
    text = AutoTokenizer.from_pretrained(str(directory)).decode(entry.token_ids)

    said = [*chat.history, chat.text]
    assert [text.index(each) for each in said] == sorted(text.index(each) for each in said)
    assert text.count("<|im_start|>user") == 3
    assert text.endswith("<|im_start|>assistant\n")


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
