"""The native CPU backend: `Ops` on hand-written kernels (see `native/`), float32, exact rows by
construction.

Every result is one sum in one fixed order, so no token's bits depend on the company it is computed
in. Knows only `interface.py` and the C functions.
"""

import ctypes
from ctypes import byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.model.ops.interface import AttentionParams, LayerCache, TokenBatch
from engine.model.ops.native.build import BuildError, library_path

_PANEL = 16
_ALIGNMENT = 64


class _Linear(ctypes.Structure):
    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("out_features", c_int64),
        ("in_features", c_int64),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("window", c_int64),
        ("scale", c_float),
        ("eps", c_float),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("rows", c_void_p),
        ("block_tables", c_void_p),
        ("tokens", c_int64),
        ("max_blocks", c_int64),
        ("block_size", c_int64),
    )


class NativeLinear:
    """A weight [out, in] in panels of 16 outputs; the only copy."""

    def __init__(self, panels: Tensor, bias: Tensor | None, out_features: int) -> None:
        self.out_features, self.in_features = out_features, panels.shape[1]
        self._panels, self._bias = panels, bias
        self.native = _Linear(panels.data_ptr(), _pointer(bias), out_features, self.in_features)
        self.reference = byref(self.native)


@cache
def _library() -> ctypes.CDLL:
    """The compiled kernels with their signatures.

    Raises:
        BuildError: if they cannot be compiled or loaded.
    """
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "context_new": (c_void_p, [c_int]),
        "context_free": (None, [c_void_p]),
        "linear_pack": (None, [c_void_p, c_int64, c_int64, c_int64, c_void_p]),
        "linear_embed": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
        "linear_forward": (
            c_int,
            [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_void_p],
        ),
        "linear_gate_up": (
            c_int,
            [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p],
        ),
        "attention_forward": (c_int, [c_void_p] * 7),
        "sample_rows": (
            c_int,
            [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class NativeOps:
    """`Ops` on a CPU, in C."""

    def __init__(self, num_threads: int) -> None:
        """Start the kernels' threads; the caller's is one of them.

        Raises:
            BuildError: if the kernels are not available (ask `unavailable_reason` first).
        """
        self.name = "native"
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._library = _library()
        self._context = self._library.context_new(num_threads)
        if not self._context:
            raise BuildError(f"{num_threads} threads cannot be started")
        self._shapes: dict[int, tuple[AttentionParams, Any]] = {}

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.context_free(context)

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why the kernels cannot be used here; None when they can. Compiles them if need be."""
        try:
            _library()
        except BuildError as error:
            return str(error)
        return None

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> NativeLinear:
        """See `Ops.pack`."""
        out_features, in_features = weight.shape
        padded = -(-out_features // _PANEL) * _PANEL
        panels = _aligned(padded // _PANEL, in_features, _PANEL)
        panels[-1].zero_()
        source = weight.to(torch.float32).contiguous()
        self._library.linear_pack(
            source.data_ptr(), 0, out_features, in_features, panels.data_ptr()
        )
        padded_bias = None
        if bias is not None:
            padded_bias = torch.zeros(padded)
            padded_bias[:out_features] = bias
        return NativeLinear(panels, padded_bias, out_features)

    def embed(self, token_ids: Tensor, table: NativeLinear) -> Tensor:
        """See `Ops.embed`."""
        out = torch.empty(len(token_ids), table.in_features)
        _check(
            self._library.linear_embed(
                table.reference, token_ids.data_ptr(), len(token_ids), out.data_ptr()
            )
        )
        return out

    def linear(
        self,
        x: Tensor,
        weight: NativeLinear,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.linear`."""
        x = x.contiguous()
        out = torch.empty(x.shape[0], weight.out_features)
        _check(
            self._library.linear_forward(
                self._context,
                weight.reference,
                x.data_ptr(),
                x.shape[0],
                None if norm is None else norm.data_ptr(),
                eps,
                None if residual is None else residual.data_ptr(),
                out.data_ptr(),
            )
        )
        return out

    def gate_up(self, x: Tensor, weight: NativeLinear, *, norm: Tensor, eps: float) -> Tensor:
        """See `Ops.gate_up`."""
        width = weight.out_features // 2
        if width % _PANEL:
            gate, up = self.linear(x, weight, norm=norm, eps=eps).chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up
        x = x.contiguous()
        out = torch.empty(x.shape[0], width)
        _check(
            self._library.linear_gate_up(
                self._context,
                weight.reference,
                x.data_ptr(),
                x.shape[0],
                norm.data_ptr(),
                eps,
                out.data_ptr(),
            )
        )
        return out

    def attention(
        self, qkv: Tensor, params: AttentionParams, cache: LayerCache, batch: TokenBatch
    ) -> Tensor:
        """See `Ops.attention`."""
        out = torch.empty(qkv.shape[0], params.num_heads * params.head_size)
        tokens = _Batch(
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.rows.data_ptr(),
            batch.block_tables.data_ptr(),
            qkv.shape[0],
            batch.block_tables.shape[1],
            batch.block_size,
        )
        _check(
            self._library.attention_forward(
                self._context,
                self._shape(params),
                byref(tokens),
                qkv.data_ptr(),
                cache.keys.data_ptr(),
                cache.values.data_ptr(),
                out.data_ptr(),
            )
        )
        return out

    def sample(
        self,
        logits: Tensor,
        inverse_temperature: Tensor,
        keys: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.sample`."""
        logits = logits.contiguous()
        chosen = torch.empty(logits.shape[0], dtype=torch.int64)
        _check(
            self._library.sample_rows(
                self._context,
                logits.data_ptr(),
                logits.shape[0],
                logits.shape[1],
                inverse_temperature.data_ptr(),
                keys.data_ptr(),
                None if token_ids is None else token_ids.data_ptr(),
                chosen.data_ptr(),
            )
        )
        return chosen

    def _shape(self, params: AttentionParams) -> Any:
        """The C view of a layer's parameters, made once; the entry keeps the tensors alive."""
        entry = self._shapes.get(id(params))
        if entry is None:
            native = _Attention(
                params.num_heads,
                params.num_kv_heads,
                params.head_size,
                params.rope_cos.data_ptr(),
                params.rope_sin.data_ptr(),
                _pointer(params.q_norm),
                _pointer(params.k_norm),
                params.sliding_window or 0,
                params.scale,
                params.norm_eps,
            )
            entry = (params, byref(native))
            self._shapes[id(params)] = entry
        return entry[1]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _aligned(*shape: int) -> Tensor:
    """An uninitialized float32 tensor that begins on a cache line."""
    count = 1
    for length in shape:
        count *= length
    raw = torch.empty(count + _ALIGNMENT // 4)
    skip = (-raw.data_ptr() % _ALIGNMENT) // 4
    return raw[skip : skip + count].view(shape)


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("native kernels: out of memory")
    assert status == 0, "native kernels: a token id, position or slot is out of range"
