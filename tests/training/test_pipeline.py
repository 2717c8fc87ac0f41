"""`heads train` on a tiny model, from prompts to the report.

A run that searches for exits and is killed again and again ends with the same heads.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from character_tokenizer import write_character_tokenizer
from safetensors.torch import load_file
from tiny_model import HIDDEN, LAYERS, write_tiny_llama

from training import generate as generating
from training import gpu
from training.cli import main
from training.progress import ProgressReport
from training.tensor_file import write_tensors

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_character_tokenizer(directory)
    rows = [{"task": "ab"[n % 2], "prompt": f"number {n} {n * 7 % 13}?"} for n in range(300)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / "prompts.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(autouse=True)
def few_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = ("training.search._TIMED", "training.selection._TIMED", "training.pipeline._REPORTED")
    for name in timed:
        monkeypatch.setattr(f"{name}_PROMPTS", 2)
        monkeypatch.setattr(f"{name}_LENGTH", 12)
    monkeypatch.setattr("engine.worker.cost_profile._ROUNDS", 1)
    monkeypatch.setattr("training.engines._TRAFFIC_ROWS", (1, 2))
    monkeypatch.setattr("training.engines._TRAFFIC_ROUNDS", 1)


def command(model: Path, output: Path, *flags: str) -> list[str]:
    return [
        "train", str(model), "--prompts", str(model / "prompts.jsonl"), "--no-code-prompts",
        "--output", str(output), "--max-new-tokens", "8", "--threads", "1", "--epochs", "2",
        "--tokens", "1800", "--device", "cpu", *flags,
    ]  # fmt: skip


def train(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["heads", *args])
    return main()


class Killed(BaseException):
    """An exception that nothing catches, like a kill."""


def test_a_run_killed_everywhere_ends_with_the_same_heads(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generating, "_GROUP", 100)
    flags = ("--search", "--search-tokens", "900", "--refine", "32")
    args = command(model, tmp_path / "out", *flags)
    left = 0
    update = ProgressReport.update

    def update_or_die(report: ProgressReport, done: int, note: str = "") -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        update(report, done, note)

    killed = 0
    with monkeypatch.context() as patched:
        patched.setattr(ProgressReport, "update", update_or_die)
        for left in accumulate(range(1, 40)):  # noqa: B007 - counts down while it runs
            try:
                assert train(monkeypatch, *args) == 0
                break
            except Killed:
                killed += 1
    assert killed > 5
    assert f"cheap heads: {LAYERS}/{LAYERS} layers" in capsys.readouterr().err

    [work] = (tmp_path / "out" / "work").iterdir()
    again = tmp_path / "again" / "work" / work.name
    [result] = work.glob("search-*/result.json")
    (again / result.parent.name).mkdir(parents=True)
    shutil.copy(work / "made-by.json", again)
    shutil.copy(work / "generations.jsonl", again)
    shutil.copy(result, again / result.parent.name)
    assert train(monkeypatch, *command(model, tmp_path / "again", *flags)) == 0
    heads = [load_file(str(tmp_path / n / "heads.safetensors")) for n in ("out", "again")]
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())
    check_output(tmp_path / "out")


def check_output(output: Path) -> None:
    facts = json.loads((output / "heads.json").read_text())
    layers = facts["exit_layers"]
    assert 0 < len(layers) <= 2
    assert all(0 <= layer < LAYERS for layer in layers)
    assert facts["training"]["num_tokens"] > 1500
    assert len(facts["search"]["candidates"]) == 3
    fastest = max(facts["search"]["candidates"], key=lambda each: each["measured"])
    assert fastest["exit_layers"] == layers
    assert set(fastest["measured_by_temperature"]) == {"0", "0.8"}
    assert facts["search"]["clock"] == "modelled"
    assert facts["refinement_sizes"] == {str(layer): 32 for layer in layers}
    states = {path.name.split(".")[1] for path in output.glob("work/*/hidden/*")}
    assert states == {"last", *(f"exit-{layer}" for layer in layers)}, "nothing else is kept"
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "no output changed" in page
    assert "http" not in page, "nothing is fetched"


def test_a_run_that_was_killed_by_a_signal_goes_on(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    own = ("--exit-layers", "2", "--no-previous-token", "--vocabulary-size", "30")
    args = command(model, tmp_path, *own)
    run = subprocess.Popen(
        [sys.executable, "-m", "training.cli", *args], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob("work/*/generations.jsonl"))
        and run.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert train(monkeypatch, *args) == 0
    tensors = load_file(str(tmp_path / "heads.safetensors"))
    assert not tensors["exits.2.project_previous"].any()
    assert tensors["exits.2.project"].any()

    [work] = (tmp_path / "work").iterdir()
    first = json.loads((tmp_path / "heads.json").read_text())["training"]
    further = command(model, tmp_path / "on", "--start-from", str(tmp_path), "--refine", "32")
    assert train(monkeypatch, *further, "--work", str(work)) == 0
    facts = json.loads((tmp_path / "on" / "heads.json").read_text())
    assert facts["training"]["started_from"] == first
    assert facts["refinement_sizes"] == {"2": 32}, "linear heads can be given one"
    again = command(model, tmp_path / "x", "--start-from", str(tmp_path / "on"), "--refine", "64")
    assert train(monkeypatch, *again) == 1, "another size is refused"
    other = write_tiny_llama(tmp_path / "other", seed=1)
    write_character_tokenizer(other)
    wrong = [*further]
    wrong[1] = str(other)
    assert train(monkeypatch, *wrong) == 1, "heads of other weights"
    lower = command(model, tmp_path / "low", "--start-from", str(tmp_path / "on"))
    assert train(monkeypatch, *lower, "--exit-layers", "0", "--refine", "32", "--no-report") == 0
    assert json.loads((tmp_path / "low" / "heads.json").read_text())["exit_layers"] == [0]
    kept = load_file(str(tmp_path / "low" / "heads.safetensors"))["vocabulary"]
    assert torch.equal(kept, tensors["vocabulary"]), "as the heads it goes on from have it"
    assert len(kept) == 30
    assert (tmp_path / "on" / "report.html").read_text().count("<svg") == 2


def test_as_on_a_gpu_with_little_memory(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "is_used", lambda decoder: True)
    flags = ("--exit-layers", "1,2,4", "--no-report", "--batch-tokens", "256")
    # Memory for the states of two exits at a time.
    memory = ("--memory-gib", str(3.5 * 1800 * HIDDEN * 2 / 2**30))
    assert train(monkeypatch, *command(model, tmp_path, *flags, *memory)) == 0
    facts = json.loads((tmp_path / "heads.json").read_text())
    assert facts["exit_layers"] == [1, 2, 4]
    assert facts["training"]["batch_tokens"] == 256
    assert facts["training"]["learning_rate"] < 1e-3
    assert not (tmp_path / "report.html").exists()
    assert not list(tmp_path.glob("work/*/hidden")), "only held-out states are kept"
    first = load_file(str(tmp_path / "heads.safetensors"))
    (tmp_path / "heads.json").unlink()
    assert train(monkeypatch, *command(model, tmp_path, *flags)) == 0, "from its checkpoints"
    again = load_file(str(tmp_path / "heads.safetensors"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())

    monkeypatch.setattr(gpu, "is_used", lambda decoder: False)
    choose = [
        "search", str(model), "--prompts", str(model / "prompts.jsonl"), "--no-code-prompts",
        "--heads", str(tmp_path), "--output", str(tmp_path / "chosen"), "--tokens", "400",
        "--max-new-tokens", "8", "--threads", "1", "--device", "cpu", "--candidates", "2",
    ]  # fmt: skip
    costs = ("--costs", str(tmp_path / "costs.json"))
    assert train(monkeypatch, *choose, *costs) == 0
    searches = [json.loads((tmp_path / "chosen" / "heads.json").read_text())["search"]]
    assert train(monkeypatch, *choose, *costs) == 0
    searches.append(json.loads((tmp_path / "chosen" / "heads.json").read_text())["search"])
    assert searches[0] == searches[1], "the same costs, the same figures"
    assert searches[0]["clock"] == "modelled"
    assert train(monkeypatch, *choose, "--clock", "wall") == 0
    chosen = json.loads((tmp_path / "chosen" / "heads.json").read_text())
    layers = chosen["exit_layers"]
    assert 0 < len(layers) <= 2
    assert chosen["search"]["chosen_from"] == [1, 2, 4]
    assert chosen["search"]["candidates"][0]["exit_layers"] == layers
    assert len(chosen["search"]["candidates"]) == 2
    assert chosen["search"]["clock"] == "wall"
    assert chosen["calibration"] == {str(n): facts["calibration"][str(n)] for n in layers}
    kept = load_file(str(tmp_path / "chosen" / "heads.safetensors"))
    assert {int(name.split(".")[1]) for name in kept if name != "vocabulary"} == set(layers)
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept.items())


def test_what_another_model_or_other_prompts_made_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "model"
    shutil.copytree(model, mine)
    output = mine / "exit_heads"
    args = [*command(mine, output, "--exit-layers", "2", "--no-report"), "--tokens", "600"]
    assert train(monkeypatch, *args) == 0
    [work] = (output / "work").iterdir()
    first = load_file(str(output / "heads.safetensors"))

    write_tiny_llama(mine, seed=1)
    capsys.readouterr()
    assert train(monkeypatch, *args, "--work", str(work)) == 1
    assert f"--work: {work} holds text of other weights" in capsys.readouterr().err
    assert train(monkeypatch, *args) == 0, "what is not named is not in the way"
    assert len(list((output / "work").iterdir())) == 2
    second = load_file(str(output / "heads.safetensors"))
    assert not torch.equal(second["exits.2.norm"], first["exits.2.norm"])

    write_tiny_llama(mine)
    assert train(monkeypatch, *args, "--work", str(work), "--max-new-tokens", "9") == 1
    assert "another --max-new-tokens" in capsys.readouterr().err
    (mine / "prompts.jsonl").write_text('{"prompt": "another?"}\n')
    assert train(monkeypatch, *args, "--work", str(work)) == 1
    assert "other prompts" in capsys.readouterr().err


def test_heads_to_start_from_count_by_their_contents(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    flags = ("--exit-layers", "2", "--no-report", "--work", str(tmp_path / "work"))
    origin = tmp_path / "origin"
    assert train(monkeypatch, *command(model, origin, *flags), "--tokens", "600") == 0
    further = [*command(model, tmp_path / "on", *flags), "--start-from", str(origin)]
    assert train(monkeypatch, *further, "--tokens", "600") == 0
    first = load_file(str(tmp_path / "on" / "heads.safetensors"))
    tensors = load_file(str(origin / "heads.safetensors"))
    tensors["exits.2.project"] *= 0.5
    write_tensors(origin / "heads.safetensors", tensors)
    assert train(monkeypatch, *further, "--tokens", "600") == 0
    second = load_file(str(tmp_path / "on" / "heads.safetensors"))
    assert not torch.equal(first["exits.2.project"], second["exits.2.project"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--search", "--exit-layers", "2"), "--exit-layers"),
        (("--search", "--start-from", "x"), "--start-from"),
        (("--start-from", "/nowhere"), "/nowhere"),
        (("--start-from", "x", "--no-previous-token"), "--no-previous-token"),
        (("--exit-layers", "9"), "--exit-layers"),
        (("--clock", "modelled"), "--clock"),
        (("--search", "--clock", "wall", "--costs", "x"), "--costs"),
        (("--refine", "33"), "--refine"),
        (("--vocabulary-size", "auto"), "--search"),
        (("--vocabulary-size", "-3"), "--vocabulary-size"),
        (("--tokens", str(10**12)), "--tokens"),
        (("--max-new-tokens", "100"), "--max-new-tokens"),
        (("--output", "/dev/null/x"), "--output: /dev/null is not a directory"),
        (("--work", "/dev/null"), "--work: /dev/null is not a directory"),
        (("--prompts", "/nowhere"), "--prompts: /nowhere cannot be read"),
        (("--prompts", "/"), "--prompts: / cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    named: str,
) -> None:
    assert train(monkeypatch, *command(model, tmp_path), *flags) == 1
    assert named in capsys.readouterr().err
