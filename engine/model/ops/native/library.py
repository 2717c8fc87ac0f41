"""The compiled kernels for ctypes: structures and signatures, which must match the C files beside
this one.
"""

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from engine.model.ops.native.build import BuildError, library_path


class Linear(ctypes.Structure):
    """`Linear` in linear.h."""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("out_features", c_int64),
        ("in_features", c_int64),
        ("panel_bytes", c_int64),
        ("format", c_int32),
        ("rounded", c_int32),
    )


class AttentionParams(ctypes.Structure):
    """`AttentionParams` in attention.h."""

    _fields_ = (
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("max_positions", c_int64),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_size", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("eps", c_float),
    )


class TokenBatch(ctypes.Structure):
    """`TokenBatch` in attention.h."""

    _fields_ = (
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("rows", c_void_p),
        ("block_tables", c_void_p),
        ("tokens", c_int64),
        ("num_rows", c_int64),
        ("max_blocks", c_int64),
        ("block_size", c_int64),
    )


class LayerCache(ctypes.Structure):
    """`LayerCache` in attention.h."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p), ("num_slots", c_int64))


class Layer(ctypes.Structure):
    """`Layer` in layers.c."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qkv", ctypes.POINTER(Linear)),
        ("output", ctypes.POINTER(Linear)),
        ("gate_up", ctypes.POINTER(Linear)),
        ("down", ctypes.POINTER(Linear)),
        ("attention", ctypes.POINTER(AttentionParams)),
        ("cache", ctypes.POINTER(LayerCache)),
    )


class Head(ctypes.Structure):
    """`Head` in head.c."""

    _fields_ = (
        ("norm", c_void_p),
        ("previous_norm", c_void_p),
        ("refinement_norm", c_void_p),
        ("final_norm", c_void_p),
        ("unit_norm", c_void_p),
        ("project", ctypes.POINTER(Linear)),
        ("project_previous", ctypes.POINTER(Linear)),
        ("gate_up", ctypes.POINTER(Linear)),
        ("down", ctypes.POINTER(Linear)),
        ("lm_head", ctypes.POINTER(Linear)),
        ("other", ctypes.POINTER(Linear)),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "context_new": (c_void_p, [c_int]),
    "context_pin": (None, [c_void_p, c_void_p, c_int32]),
    "context_free": (None, [c_void_p]),
    "linear_prefer_huge_pages": (None, [c_void_p, c_int64]),
    "panel_bytes": (c_int64, [c_int32, c_int64]),
    "linear_bytes": (c_int64, [c_int32, c_int64, c_int64]),
    "linear_pack": (None, [c_void_p, c_void_p, c_int64, c_int64]),
    "linear_pack_codes": (None, [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64]),
    "linear_embed": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
    "linear_forward": (
        c_int,
        [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_void_p],
    ),
    "linear_gate_up": (
        c_int,
        [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p],
    ),
    "attention_forward": (c_int, [c_void_p] * 6),
    "layers_forward": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_void_p],
    ),
    "head_forward": (
        c_int,
        [
            *(c_void_p, c_void_p, c_void_p, c_int64),
            *(c_void_p, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_void_p),
        ],
    ),
    "exclude_forward": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p],
    ),
    "sample_forward": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
    "expect_forward": (
        c_int,
        [
            *(c_void_p, c_void_p, c_void_p, c_int64, c_int64),
            *(c_void_p, c_void_p, c_void_p, c_void_p, c_float, c_float, c_void_p),
        ],
    ),
}


@cache
def load_library() -> ctypes.CDLL:
    """Load the compiled kernels and declare their signatures; compiles them if need be.

    Raises:
        BuildError: if they cannot be compiled or loaded.
    """
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
