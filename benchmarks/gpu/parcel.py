"""Packs a model into small pieces, for a machine that takes no large files and reads no GGUF.

    python -m benchmarks.gpu.parcel [MODEL] DIR      writes DIR/parcel.0, parcel.1, …

`python -m benchmarks.gpu --model DIR` puts the pieces together and dequantizes the blocks to the
float32 weights that they stand for, so that exit heads still fit.
"""

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from engine.checkpoint.directory import BLOCKS_FILE, has_blocks
from engine.model.block_weight import BlockWeight

PIECE_BYTES = 52 * 2**20
_PIECE = "parcel"
_WEIGHTS = "model.safetensors"
_REST = "rest.safetensors"  # tensors that are not quantized
_HEADS = "exit_heads"


def pack(directory: Path, heads: Path | None, target: Path, piece_bytes: int) -> list[Path]:
    """Write a converted model and its exit heads in pieces.

    Raises:
        ValueError: if the checkpoint has no quantized blocks, without which it would not be small.
    """
    if not has_blocks(directory):
        raise ValueError(f"{directory} has no {BLOCKS_FILE}: only quantized models are packed")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in sorted(directory.iterdir()):
            if path.name != _WEIGHTS:
                archive.add(path, path.name)
        rest = save(dict(_unquantized(directory)))
        member = tarfile.TarInfo(_REST)
        member.size = len(rest)
        archive.addfile(member, io.BytesIO(rest))
        for path in sorted(heads.iterdir()) if heads is not None else ():
            archive.add(path, f"{_HEADS}/{path.name}")
    target.mkdir(parents=True, exist_ok=True)
    pieces = []
    data = content.getbuffer()
    for number, start in enumerate(range(0, len(data), piece_bytes)):
        pieces.append(target / f"{_PIECE}.{number}")
        pieces[-1].write_bytes(data[start : start + piece_bytes])
    return pieces


def is_parcel(directory: Path) -> bool:
    """Whether a directory holds a model in pieces."""
    return (directory / f"{_PIECE}.0").is_file()


def unpack(source: Path, target: Path) -> Path:
    """Put the pieces together into a directory in Hugging Face's layout, heads in `exit_heads`."""
    count = sum(1 for _ in source.glob(f"{_PIECE}.*"))
    data = b"".join((source / f"{_PIECE}.{number}").read_bytes() for number in range(count))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # Set as an attribute because Debian 12's Python 3.11.2 has no `filter` argument.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(target)
    with safe_open(str(target / _REST), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with safe_open(str(target / BLOCKS_FILE), framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in [name for name in stored if name.endswith(".codes")]:
        matrix = name.removesuffix(".codes")
        block = BlockWeight(
            codes=stored[name],
            scales=stored[f"{matrix}.scales"],
            minimums=stored.get(f"{matrix}.minimums"),
        )
        tensors[matrix] = block.dequantize()
    save_file(tensors, str(target / _WEIGHTS))
    (target / _REST).unlink()
    (target / BLOCKS_FILE).unlink()
    return target


def _unquantized(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the checkpoint that are not quantized."""
    with safe_open(str(directory / BLOCKS_FILE), framework="pt") as file:
        quantized = {name.removesuffix(".codes") for name in file.keys()}  # noqa: SIM118
    with safe_open(str(directory / _WEIGHTS), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name not in quantized:
                yield name, file.get_tensor(name)


def main() -> int:
    """Entry point of `python -m benchmarks.gpu.parcel`."""
    from engine.checkpoint import find_heads, resolve_model

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.parcel", description=__doc__)
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("target", metavar="DIR", type=Path)
    args = parser.parse_args()
    directory = resolve_model(args.model)
    heads = find_heads(args.model, directory)
    for piece in pack(directory, heads, args.target, PIECE_BYTES):
        print(f"{piece} {piece.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
