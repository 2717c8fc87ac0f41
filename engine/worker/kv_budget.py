"""Determines how many KV blocks a worker has: what memory allows, what sequences could use."""

import torch

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.model.decoder import Decoder
from engine.worker import memory
from engine.worker.kv_cache import block_size_bytes


def count_blocks(config: EngineConfig, decoder: Decoder, max_model_len: int) -> int:
    """Return the blocks that fit the memory budget, at most what all sequences could use.

    Args:
        config: Its `cache.num_blocks` is what the worker had before that this one replaces.
        decoder: The loaded model: the budget is what it leaves.
        max_model_len: The longest sequence, in tokens.

    Raises:
        ModelLoadError: Not one block fits.
    """
    block_size, device = config.cache.block_size, decoder.ops.device
    per_block = block_size_bytes(decoder.spec, block_size, decoder.ops.dtype)
    as_before = config.cache.num_blocks
    if as_before is not None and as_before * per_block <= memory.free_bytes(device):
        return as_before
    budget = config.cache.kv_cache_memory_bytes
    if budget is None or as_before is not None:
        left = _budget(config, decoder)  # something else may have taken what there was before
        budget = left if budget is None else min(budget, left)
    most = config.scheduler.max_num_seqs * -(-max_model_len // block_size)
    num_blocks = min(budget // per_block, most)
    if num_blocks < 1:
        raise ModelLoadError(
            f"--kv-cache-memory: {budget} bytes do not hold one block of {per_block} bytes"
        )
    return num_blocks


def _budget(config: EngineConfig, decoder: Decoder) -> int:
    """Return the bytes for the KV cache where none are configured."""
    utilization, device = config.cache.gpu_memory_utilization, decoder.ops.device
    if device.type != "cuda":
        if utilization is not None:
            raise ModelLoadError("--gpu-memory-utilization: the model is not on a GPU")
        return memory.cpu_budget()
    max_rows, drafts = config.scheduler.max_num_seqs, config.exits.max_draft_tokens
    memory.run_largest(decoder, config.scheduler.max_num_batched_tokens, max_rows * (1 + drafts))
    free, total = torch.cuda.mem_get_info(device)
    return memory.gpu_budget(utilization or memory.DEFAULT_GPU_UTILIZATION, free, total)
