"""Makes engines according to a benchmark's flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import Entry
from benchmarks.model_flags import model_config
from engine.config import CacheConfig, EngineConfig, SchedulerConfig
from training.engines import Engines, Traffic

_CACHE_BYTES = 64 << 20  # KV cache of one of several engines, per concurrent stream


def make_engines(
    args: argparse.Namespace,
    directory: Path,
    entries: Sequence[Entry],
    concurrencies: Sequence[int],
    *,
    are_several: bool = False,
    prefix_caching: bool = True,
) -> Engines:
    """Return a maker of engines for the parsed flags.

    Args:
        are_several: Several engines share the memory, so each has a small KV cache.
    """
    cache_bytes = _CACHE_BYTES * max(concurrencies) if are_several else None
    config = EngineConfig(
        model=model_config(args, directory),
        cache=CacheConfig(kv_cache_memory_bytes=cache_bytes),
        scheduler=SchedulerConfig(max_num_seqs=max(concurrencies), prefix_caching=prefix_caching),
        worker="inline",
    )
    traffic = Traffic(prompts=[entry.token_ids for entry in entries], temperature=args.temperature)
    return Engines(config, clock=args.clock, costs=args.costs, traffic=traffic)
