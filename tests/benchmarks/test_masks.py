from pathlib import Path

import pytest
from acceptance.parrot import write_tokenizer
from fake_worker import EOS_ID

from benchmarks.masks import step_ms, walk
from engine.request import Structure
from engine.worker.grammars import Grammars

pytestmark = pytest.mark.torch


def test_a_structure_is_followed_to_its_end_and_timed_token_by_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    grammars = Grammars(tmp_path, 256, [EOS_ID])
    structure = Structure(kind="regex", source="ab[0-9]{3}")
    followed = walk(grammars, structure, seed=0, most=100)
    assert followed.error is None
    assert len(followed.token_ms) == 6, "five characters and the end"
    assert all(each > 0 for each in followed.token_ms)
    assert len(walk(grammars, structure, seed=0, most=2).token_ms) == 2


def test_steps_of_rows_with_drafts_are_timed_beyond_the_end_of_a_structure(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    grammars = Grammars(tmp_path, 256, [EOS_ID])
    structures = [Structure(kind="regex", source=source) for source in ("[a-z]{3}", "[0-9]{40}")]
    times = step_ms(grammars, structures, num_drafts=2, num_steps=5)
    assert len(times) == 5
    assert all(each > 0 for each in times)
