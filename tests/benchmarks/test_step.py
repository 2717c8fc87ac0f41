"""`bench step` on a tiny model."""

import pytest
from backends import needs_native
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_llama

from benchmarks import step

pytestmark = [pytest.mark.torch, needs_native]


def test_a_line_for_every_case(tmp_path, monkeypatch, capsys):
    model = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(model)  # a model without a tokenizer is refused
    flags = ["--threads", "1", "--rows", "1,2", "--contexts", "8,40", "--steps", "6"]
    monkeypatch.setattr("sys.argv", ["step", str(model), "--forms", "float32", *flags])
    monkeypatch.setattr(step, "read_bandwidth", lambda: 10.0)

    step.main()

    header, *lines = capsys.readouterr().out.split("\n\n")[-1].strip().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["float32", "1", "8"],
        ["float32", "2", "8"],
        ["float32", "1", "40"],
    ]
    for line in lines:
        cells = line.split()
        assert float(cells[5]) > 0, "layers take time"
    assert "layers" in header
