"""`bench passes` on a tiny model: passes over several tokens of one stream."""

import pytest
from backends import needs_native
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_llama

from benchmarks import passes

pytestmark = [pytest.mark.torch, needs_native]


def test_every_form_has_a_line_and_one_token_is_the_measure(tmp_path, monkeypatch, capsys):
    model = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(model)  # a model without a tokenizer is refused
    flags = ["--threads", "1", "--tokens", "1,4", "--context", "20", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["passes", str(model), "--forms", "float32,int8", *flags])

    passes.main()

    *_, first, second = capsys.readouterr().out.strip().splitlines()
    for line, form in ((first, "float32"), (second, "int8")):
        name, *cells = line.split()
        assert name == form
        assert cells[2] == "(1.00)"
        assert float(cells[3]) > 0


def test_a_form_that_is_none_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["passes", "--forms", "float32,foo"])

    with pytest.raises(SystemExit):
        passes.main()

    error = capsys.readouterr().err
    assert "argument --forms: foo: there are float32, bfloat16, int8, int4" in error
