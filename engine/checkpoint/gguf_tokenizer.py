"""A GGUF file's tokenizer -> tokenizer.json and its configuration, through transformers.

transformers' GGUF reader imports torch, which must stay out of the server's process, so a child
process does the work: `python -m engine.checkpoint.gguf_tokenizer FILE DIRECTORY`.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gguf import GGUFReader

from engine.errors import ModelLoadError

_PACKAGE_ROOT = Path(__file__).parents[2]

# How to split text before BPE where transformers' converter does not know `tokenizer.ggml.pre`.
_PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }
}


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

    def finish(self, pre_tokenizer: str | None) -> None:
        """Wait until the tokenizer's files are written.

        Args:
            pre_tokenizer: The file's `tokenizer.ggml.pre`.

        Raises:
            ModelLoadError: The tokenizer cannot be converted.
        """
        _, complaint = self._process.communicate()
        if self._process.returncode != 0:
            reason = complaint.strip().splitlines()[-1:] or ["unknown reason"]
            raise ModelLoadError(f"The tokenizer in {self._file} cannot be converted: {reason[0]}")
        if pre_tokenizer in _PRE_TOKENIZERS:
            path = self._directory / "tokenizer.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            content["pre_tokenizer"] = _PRE_TOKENIZERS[pre_tokenizer]
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def stop(self) -> None:
        """End the child process if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()


def _convert(file: Path, directory: Path) -> None:
    from transformers import AutoTokenizer

    _check_split(file)
    tokenizer = AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name, local_files_only=True
    )
    tokenizer.save_pretrained(str(directory))


def _check_split(file: Path) -> None:
    """End with a message if nobody knows how to split text before BPE.

    transformers' converter would split it as GPT-2 does, without a word.
    """
    with suppress(ImportError):  # another release of transformers may keep its table elsewhere
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        fields = GGUFReader(file).fields
        kind, split = (
            fields[key].contents() if key in fields else None
            for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
        )
        known = {None, *_LIKE_GPT2, *_PRE_TOKENIZERS, *GGUF_PRE_TOKENIZER_SPLITS}
        if kind == "gpt2" and split not in known:
            sys.exit(f"its pre-tokenizer {split!r} is not supported")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
