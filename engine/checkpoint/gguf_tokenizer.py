"""A GGUF file's tokenizer -> tokenizer.json and its configuration, through transformers.

transformers' GGUF reader imports torch, which must stay out of the server's process, so a child
process does the work: `python -m engine.checkpoint.gguf_tokenizer FILE DIRECTORY`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from engine.checkpoint.gguf_tokens import PRE_TOKENIZERS, put_right, role_tokens
from engine.errors import ModelLoadError

_PACKAGE_ROOT = Path(__file__).parents[2]

_LIKE_GPT2 = ("default", "gpt-2")


class TokenizerConversion:
    """A running conversion of one file's tokenizer; call `stop` whatever happens."""

    def __init__(self, file: Path, directory: Path) -> None:
        self._file = file
        self._directory = directory
        search_path = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.checkpoint.gguf_tokenizer", str(file), str(directory)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> None:
        """Wait until the tokenizer's files are written.

        Raises:
            ModelLoadError: The tokenizer cannot be converted.
        """
        _, complaint = self._process.communicate()
        if self._process.returncode != 0:
            reason = complaint.strip().splitlines()[-1:] or ["unknown reason"]
            raise ModelLoadError(f"The tokenizer in {self._file} cannot be converted: {reason[0]}")

    def stop(self) -> None:
        """End the child process if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()


def _convert(file: Path, directory: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    said = _said(file)
    _check_split(said)
    made = AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name, local_files_only=True
    )
    content = json.loads(made.backend_tokenizer.to_str())
    put_right(content, said)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=made.chat_template,
        **role_tokens(said),
    )
    tokenizer.save_pretrained(str(directory))


def _said(file: Path) -> dict[str, Any]:
    """Return what the file says of its tokenizer, less the long lists that transformers reads."""
    left_out = ("tokenizer.ggml.merges", "tokenizer.ggml.scores")
    fields = GGUFReader(file).fields.values()
    return {
        field.name: field.contents()
        for field in fields
        if field.name.startswith("tokenizer.") and field.name not in left_out
    }


def _check_split(said: Mapping[str, Any]) -> None:
    """End with a message if nobody knows how to split text before BPE.

    transformers' converter would split it as GPT-2 does, without a word.
    """
    with suppress(ImportError):  # another release of transformers may keep its table elsewhere
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        kind, split = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
        known = {None, *_LIKE_GPT2, *PRE_TOKENIZERS, *GGUF_PRE_TOKENIZER_SPLITS}
        if kind == "gpt2" and split not in known:
            sys.exit(f"its pre-tokenizer {split!r} is not supported")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
