"""The import contracts of pyproject.toml hold, and modules load without what they must not need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTROL_PLANE = [f"engine.{file.stem}" for file in sorted((ROOT / "engine").glob("[!_]*.py"))]


def import_without(blocked: list[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which the blocked ones cannot be imported."""
    script = "\n".join(
        [
            "import sys",
            *(f"sys.modules[{name!r}] = None" for name in blocked),
            *(f"import {name}" for name in modules),
        ]
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_contracts_of_import_directions() -> None:
    # In a process of its own: the linter disables every logger that exists when it starts.
    script = (
        "import sys; from importlinter.cli import lint_imports;"
        f"sys.exit(lint_imports(config_filename={str(ROOT / 'pyproject.toml')!r}, no_cache=True))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_server_and_control_plane_load_without_torch() -> None:
    loaded = import_without(["torch", "transformers"], ["server.cli", "server.serve"])
    assert loaded.returncode == 0, loaded.stderr
    loaded = import_without(["torch", "transformers"], CONTROL_PLANE)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.torch
def test_what_runs_on_a_bare_gpu_machine_loads_there() -> None:
    absent = ["fastapi", "pydantic", "msgspec", "gguf", "uvicorn", "sse_starlette", "xgrammar"]
    wanted = ["engine.offline", "engine.worker.worker", "benchmarks.latency", "training.pipeline"]
    wanted.append("benchmarks.gpu.__main__")
    loaded = import_without(absent, wanted)
    assert loaded.returncode == 0, loaded.stderr
