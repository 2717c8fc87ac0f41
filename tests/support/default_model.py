"""The embedded default model, converted into the user's cache on first use."""

from pathlib import Path

import pytest

from engine.checkpoint import resolve_model
from engine.checkpoint.builtin import builtin_file

ALIAS = "smollm2-135m-instruct"


def default_model_directory() -> Path:
    """Return its directory; skip the test where the package that contains it is not installed."""
    if builtin_file(ALIAS) is None:
        pytest.skip(f"{ALIAS} is not installed")
    return resolve_model(ALIAS)
