"""What verifying several tokens of one stream costs: `python -m benchmarks.passes`.

Times a whole pass of the default model (embedding, layers, logits of every token) over 1, 2, 4, 8
and 16 tokens after the same context, for each form of weights. The counts take turns, so that
whatever else the machine does affects all of them alike. The table has medians, and their ratio to
the first count, one token by default; early exits pay as far as it stays near 1. Needs torch only.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from benchmarks.machine import describe_machine, print_facts
from benchmarks.native_flags import add_flags, native_ops, numbers, require_native
from benchmarks.single_stream import BLOCK_SIZE, num_blocks, stream_batch
from engine.checkpoint import resolve_model
from engine.model.decoder import Decoder
from engine.model.ops.interface import LayerCache
from engine.worker.decode_step import split_layers
from engine.worker.kv_cache import allocate_cache

_TOKEN = 50  # any token that is not special


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_flags(parser)
    parser.add_argument(
        "--tokens", type=numbers, default="1,2,4,8,16", help="in a pass (%(default)s)"
    )
    parser.add_argument("--context", type=int, default=64, help="tokens before (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="(%(default)s)")
    args = parser.parse_args()
    require_native()
    print_facts(describe_machine() | {"threads": str(args.threads)})
    torch.set_num_threads(1)
    counts = args.tokens
    print("form".rjust(14) + "".join(f"{count} tokens".rjust(18) for count in counts))
    directory = resolve_model(args.model)
    for form in args.forms:
        decoder = Decoder.load(directory, native_ops(args, form))
        times = _measure(decoder, counts, args.context, args.rounds)
        one = times[counts[0]]
        cells = [f"{times[n] * 1e3:.2f} ms ({times[n] / one:.2f})".rjust(18) for n in counts]
        print(form.name.lower().rjust(14) + "".join(cells), flush=True)


@torch.inference_mode()
def _measure(
    decoder: Decoder, counts: Sequence[int], context: int, rounds: int
) -> dict[int, float]:
    """Return the median seconds of a pass, by its number of tokens."""
    cache = allocate_cache(
        decoder.spec,
        num_blocks(context + max(counts)),
        BLOCK_SIZE,
        dtype=decoder.ops.dtype,
        device=decoder.ops.device,
    )
    _pass(decoder, cache, 0, context)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            started = time.perf_counter()
            _pass(decoder, cache, context, count)
            times[count].append(time.perf_counter() - started)
    return {count: median(seconds) for count, seconds in times.items()}


def _pass(decoder: Decoder, cache: Sequence[LayerCache], first: int, count: int) -> None:
    """Run `count` tokens of the only stream, from position `first`, through the whole model."""
    batch = stream_batch(first, count)
    hidden = decoder.embed(torch.full((count,), _TOKEN, dtype=torch.int32))
    for segment in split_layers(decoder.spec.num_layers, []):
        hidden = decoder.run(hidden, segment, cache, batch)
    decoder.logits(hidden)


if __name__ == "__main__":
    main()
