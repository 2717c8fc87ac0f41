"""`bench learn` on a tiny model: outputs are the same with learning off and on."""

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
from learning import change_heads_at_every_trial
from tiny_model import write_tiny_heads, write_tiny_llama

from benchmarks import learning
from benchmarks.comparison import Run
from benchmarks.contest import Entry
from benchmarks.domains import DOMAINS, domain_prompts
from engine.request import LOOKED_UP, DraftFigures

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("clock", ["wall", "modelled"])
def test_learning_changes_no_output_and_is_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: str,
) -> None:
    directory = write_tiny_llama(tmp_path / "model")
    write_tiny_heads(directory, directory / "exit_heads", [1])
    prompts = tuple(
        Entry(index=i, task="qa" if i < 1 else "german", token_ids=(5, 6, 7, 8 + i))
        for i in range(5)
    )
    change_heads_at_every_trial(monkeypatch)
    monkeypatch.setattr(learning, "encode_prompts", lambda *_: prompts)
    monkeypatch.setattr(learning, "resolve_model", Path)
    monkeypatch.setattr("engine.worker.cost_profile._ROUNDS", 1)
    monkeypatch.setattr("engine.worker.learning.budget._RESERVE_S", -1.0)  # short steps earn little
    monkeypatch.setattr("training.engines._TRAFFIC_ROWS", (1, 2))
    monkeypatch.setattr("training.engines._TRAFFIC_ROUNDS", 1)
    plot = tmp_path / "learning.png" if find_spec("matplotlib") else None
    args = Namespace(
        model=str(directory), heads=directory / "exit_heads", prompts=None, domain="german",
        num_prompts=4, familiar=1, window=2, share=0.5, no_lookup_drafts=True, max_tokens=24,
        temperature=0.0, clock=clock, costs=None, device="cpu", dtype="auto", threads=1,
        backend="auto", quantization="auto", activation_quantization="none", plot=plot,
    )  # fmt: skip

    assert learning.run(args) == 0

    assert plot is None or plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "outputs changed by learning: 0 of 5" in printed
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    assert [(row[1].strip(), row[2].strip()) for row in rows[2:]] == [
        ("1-1", "familiar"),
        ("2-3", "german"),
        ("4-5", "german"),
    ]
    assert "learned: 0 updates" not in printed


def test_a_window_counts_what_heads_drafted_and_not_what_was_looked_up() -> None:
    figures = DraftFigures(
        num_steps=3,
        num_draft_tokens=9,
        num_accepted_tokens=6,
        acceptance_histogram=(0, 1, 2),
        accepted_by_layer={LOOKED_UP: 4, 3: 2},
        drafted_by_layer={LOOKED_UP: 5, 3: 4},
    )
    window = learning.window_of(
        [
            Run(
                mode=learning.ON,
                concurrency=1,
                prompt_indices=(0,),
                tasks=("t",),
                token_ids=((1,) * 10,),
                duration_s=2.0,
                first_token_s=0.5,
                figures=(figures,),
            )
        ]
    )
    assert (window.acceptance, window.gain, window.speed) == (0.5, 20.0, 5.0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_of_a_domain_are_all_different(domain: str) -> None:
    texts = {prompt.text for prompt in domain_prompts(domain, 50)}
    assert len(texts) == 50
    with pytest.raises(ValueError, match="--num-prompts"):
        domain_prompts(domain, 51)
