"""A work directory is of one text only."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.text_origin import TextOrigin

pytestmark = pytest.mark.torch

ORIGIN = TextOrigin(
    fingerprint="a", numbers="float32", model_files="b", prompts="c", max_new_tokens=8
)


def test_the_same_text_goes_on(tmp_path: Path) -> None:
    ORIGIN.claim(tmp_path / "work")
    (tmp_path / "work" / "generations.jsonl").write_text("")
    replace(ORIGIN).claim(tmp_path / "work")
    assert replace(ORIGIN).key == ORIGIN.key


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": "x"}, "other weights"),
        ({"numbers": "bfloat16"}, "another data type"),
        ({"model_files": "x"}, "another tokenizer"),
        ({"prompts": "x", "max_new_tokens": 9}, "other prompts and another --max-new-tokens"),
    ],
)
def test_another_text_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    ORIGIN.claim(tmp_path)
    other = replace(ORIGIN, **change)
    with pytest.raises(ValueError, match=rf"--work: {tmp_path} holds text of .*{named}"):
        other.claim(tmp_path)
    assert other.key != ORIGIN.key


@pytest.mark.parametrize("content", [None, "{}", "[]"])
def test_text_that_does_not_tell_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "generations.jsonl").write_text("")
    if content is not None:
        (tmp_path / "made-by.json").write_text(content)
    with pytest.raises(ValueError, match="empty it"):
        ORIGIN.claim(tmp_path)
