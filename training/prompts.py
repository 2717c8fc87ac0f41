"""Prompts for the model's own output: those of a file, and requests about Python functions.

The latter are made from signatures and docstrings of the running interpreter's standard library.
"""

import importlib
import inspect
import json
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULES = [
    "textwrap",
    "statistics",
    "itertools",
    "functools",
    "collections",
    "heapq",
    "bisect",
    "random",
    "string",
    "re",
    "json",
    "csv",
    "datetime",
    "calendar",
    "math",
    "fractions",
    "decimal",
    "difflib",
    "shutil",
    "os.path",
    "pathlib",
    "tempfile",
    "glob",
    "fnmatch",
    "urllib.parse",
    "base64",
    "hashlib",
    "operator",
    "copy",
    "pprint",
    "enum",
    "queue",
    "threading",
    "socket",
    "struct",
    "time",
    "zipfile",
    "configparser",
    "argparse",
    "logging",
    "html",
    "unicodedata",
    "ast",
    "inspect",
    "types",
    "colorsys",
    "cmath",
    "array",
    "secrets",
    "typing",
    "dataclasses",
    "contextlib",
]

_CODE_REQUESTS = (
    "Write a Python function `{signature}`.\n\n{doc}",
    'Complete this Python function:\n\n```python\ndef {signature}:\n    """{doc}"""\n```',
    "Explain what the Python function `{name}` does and show an example of its use.\n\n{doc}",
)
FOLLOW_UPS = (  # a second question to any answer
    "Can you explain that in more detail?",
    "Give me an example.",
    "Now say it in one short paragraph.",
    "Are you sure? Check it once more, step by step.",
    "Thanks! What should I keep in mind when I use this?",
    "Write it again for a ten-year-old.",
    "Turn that into a bulleted list.",
)
_LONGEST_SIGNATURE = 200
_LONGEST_DOC = 600
_SHORTEST_DOC = 40


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user message, and what was said before it."""

    task: str
    text: str
    history: tuple[str, ...] = ()  # user and assistant in turns


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSON-lines file of objects with `prompt` and, optionally, `task`.

    Raises:
        ValueError: if a line is not such an object.
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompts.append(Prompt(str(row.get("task", "prompt")), str(row["prompt"])))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: expected an object with a prompt") from error
    return prompts


def code_prompts() -> list[Prompt]:
    """Make requests to write, complete or explain functions of the standard library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # typing.io warns whoever looks at it
        return _code_prompts()


def _code_prompts() -> list[Prompt]:
    choose = random.Random(0)
    prompts, seen = [], set()
    for module_name in _MODULES:
        for name, member in _documented(importlib.import_module(module_name)):
            doc = (inspect.getdoc(member) or "").split("\n\n")[0][:_LONGEST_DOC]
            signature = _signature(name, member)
            if signature is None or len(doc) < _SHORTEST_DOC or doc in seen:
                continue
            seen.add(doc)
            request = choose.choice(_CODE_REQUESTS)
            text = request.format(signature=signature, doc=doc, name=f"{module_name}.{name}")
            prompts.append(Prompt("code", text))
    return prompts


def shuffled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts in a fixed random order, so that its first n are a fair mix for any n."""
    order = list(prompts)
    random.Random(0).shuffle(order)
    return order


def _documented(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield a module's public callables and its classes' public methods, by qualified name."""
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not callable(member):
            continue
        yield name, member
        if inspect.isclass(member):
            for method_name, method in vars(member).items():
                if not method_name.startswith("_") and callable(method):
                    yield f"{name}.{method_name}", method


def _signature(name: str, member: Any) -> str | None:
    try:
        signature = f"{name.split('.')[-1]}{inspect.signature(member)}"
    except (TypeError, ValueError):
        return None
    # A default that shows its address makes other prompts, and so anew all text, in every process.
    is_fixed = " at 0x" not in signature
    return signature if is_fixed and len(signature) <= _LONGEST_SIGNATURE else None
