"""Softmax attention through the fastest correct kernel of each device.

    from minimind_core.attention import attend, choose_kernel
    out = attend(q, k, v)                       # causal
    t4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))
    print(choose_kernel(t4, torch.float16).reason)

`torch.nn.functional.scaled_dot_product_attention` (SDPA below) stands for
several kernels, and picks one of them by rules that differ between devices.
Where no fused kernel accepts its arguments it silently falls back to one that
materialises the whole matrix of scores. `choose_kernel` knows
these rules, so that the arguments always suit a fused kernel where there is
one. The rules are those of ``sdp_utils.cpp`` and ``sdp_utils_cpp.h`` in
PyTorch's source, read at versions 2.13 and later.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_core.precision import DeviceFacts, detect_device

Path = Literal["sdpa", "expanded", "varlen", "composed"]


class Documents(NamedTuple):
    """Where the documents of packed rows begin, in place of a full mask.

    Attributes
    ----------
    offsets : Tensor of int32, shape (documents + 1,)
        Each document's first token, counted through the whole batch, and
        the number of tokens at the end.
    longest : int
        No document is longer than this.
    """

    offsets: Tensor
    longest: int


Mask = Tensor | Documents | None
"""A boolean mask (True where a query may attend), the documents of packed
rows, or None for plain causal attention."""


class TorchBuild(NamedTuple):
    """Which attention kernels for NVIDIA GPUs a PyTorch build contains.

    Attributes
    ----------
    flash : bool
        It was compiled with FlashAttention.
    varlen : bool
        It has `torch.nn.attention.varlen` in the form of 2.11 and later,
        where causality is a window.
    varlen_grouped : bool
        That function takes grouped heads, as it does from 2.12 on.
    """

    flash: bool
    varlen: bool
    varlen_grouped: bool = False


@dataclass(frozen=True)
class Kernel:
    """Which attention kernel to use, and why.

    Attributes
    ----------
    path : {"sdpa", "expanded", "varlen", "composed"}
        SDPA with the keys and values as they are; SDPA with a copy of them
        for every query head; variable-length attention over documents;
        matrix products and a softmax of our own.
    reason : str
        One sentence.
    """

    path: Path
    reason: str


def choose_kernel(
    facts: DeviceFacts,
    dtype: torch.dtype,
    *,
    head_dim: int = 64,
    grouped: bool = True,
    masked: bool = False,
    packed: bool = False,
    build: TorchBuild | None = None,
) -> Kernel:
    """Choose the attention kernel for a device, which need not be present.

    Parameters
    ----------
    facts : DeviceFacts
    dtype : torch.dtype
        The dtype that the kernel computes in.
    head_dim : int
        Width of one head.
    grouped : bool
        Whether several query heads share one head of keys and values.
    masked : bool
        Whether there is a boolean mask.
    packed : bool
        Whether the mask would only separate the documents of packed rows.
    build : TorchBuild, optional
        The PyTorch build; the installed one if not given.

    Returns
    -------
    Kernel

    Notes
    -----
    ==========================  ==============  =====================
    device and dtype            causal          mask; packed
    ==========================  ==============  =====================
    CPU                         sdpa            sdpa; sdpa
    Ampere or newer, half       sdpa            expanded; varlen
    Ampere or newer, float32    expanded        expanded; expanded
    GPU before (T4, V100)       expanded        expanded; expanded
    Apple GPU                   composed        composed; composed
    ==========================  ==============  =====================

    Where every query head has its own keys and values there is nothing to
    expand, and "expanded" reads "sdpa".
    """
    name = facts.name
    if facts.type == "mps":
        # Metal's kernels have been silently wrong in the very cases that
        # occur here: causal attention in half precision (pytorch#195910),
        # masks shared by the heads (#184180, #182285), grouped heads over a
        # long cache (#174861). They have no backward pass, so that in
        # training SDPA composes as well (#179294).
        return Kernel(
            "composed",
            f"{name}: PyTorch's fused attention for Metal has let tokens "
            "see the future and misread masks, so it is not relied on",
        )
    if facts.type == "cpu":
        return Kernel(
            "sdpa", f"{name}: the CPU's kernel takes grouped heads and masks"
        )
    flash = varlen = False
    if facts.type == "cuda":
        build = torch_build() if build is None else build
        # FlashAttention wants compute capability 8.0, half precision and no
        # mask. Above 192 channels some GPUs have its forward pass only.
        flash = (
            build.flash
            and dtype in (torch.float16, torch.bfloat16)
            and (facts.capability or (0, 0)) >= (8, 0)
            and head_dim <= 192
        )
        # SDPA pads heads to a multiple of 8 channels, this function not.
        varlen = build.varlen and head_dim % 8 == 0
    if packed and flash and varlen:
        return Kernel(
            "varlen",
            f"{name}: FlashAttention over each document, which skips what "
            "a mask would compute and throw away",
        )
    if not grouped:
        return Kernel("sdpa", f"{name}: each query head has its own keys")
    if flash and not (masked or packed):
        return Kernel(
            "sdpa", f"{name}: FlashAttention in {_short(dtype)} takes "
            "grouped heads",
        )  # fmt: skip
    # Memory-efficient attention also runs on older GPUs, in float32 and with
    # a mask, but up to 2.13 it does not take grouped heads (pytorch#191085).
    # On a T4, generation was 1.6 to 1.8 times faster with copies than in the
    # fallback that grouped heads led to (transformers#45776, #48633).
    why = "a mask" if flash else f"{_short(dtype)} on this GPU"
    return Kernel(
        "expanded",
        f"{name}: FlashAttention does not take {why}, and memory-efficient "
        "attention does not take grouped heads, so they are copied",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def torch_build() -> TorchBuild:
    """Look at the installed PyTorch."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.9
        options: set[str] = set()
    else:
        options = set(inspect.signature(varlen_attn).parameters)
    # Builds for AMD have other kernels, with rules that were not checked.
    flash = torch.backends.cuda.is_flash_attention_available()
    nvidia = torch.version.hip is None
    return TorchBuild(
        flash and nvidia,
        "window_size" in options and nvidia,
        "enable_gqa" in options,
    )


def kernel_for(
    x: Tensor,
    head_dim: int,
    *,
    grouped: bool = True,
    masked: bool = False,
    packed: bool = False,
) -> Kernel:
    """`choose_kernel` for tensors like `x`; each device is detected once."""
    return _constant(
        x.device, compute_dtype(x), head_dim, grouped, masked, packed
    )


@cache
def _look_up(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    grouped: bool,
    masked: bool,
    packed: bool,
) -> Kernel:
    kind = device.type
    if kind in ("cpu", "cuda", "mps"):
        facts = detect_device(str(device) if kind == "cuda" else kind)
    else:
        facts = DeviceFacts(kind, kind, False)
    return choose_kernel(
        facts, dtype, head_dim=head_dim, grouped=grouped, masked=masked,
        packed=packed,
    )  # fmt: skip


def _constant(*arguments: Any) -> Kernel:
    """`_look_up`, whose result torch.compile may take as a constant."""
    return _look_up(*arguments)


def _varlen_grouped() -> bool:
    """Whether `varlen_attn` takes grouped heads."""
    return torch_build().varlen_grouped


# What torch.compiler.assume_constant_result does, without the seconds that
# importing the compiler takes.
setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010
setattr(_varlen_grouped, "_dynamo_marked_constant", True)  # noqa: B010


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which matrix products and SDPA compute on `x`.

    Under autocast this is not ``x.dtype``: on a GPU, for example, RMSNorm
    returns float32 there, and SDPA casts it.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


# --- attention -------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """Softmax attention, through a fused kernel where there is one.

    Parameters
    ----------
    q : Tensor, shape (batch, heads, time, head_dim)
    k, v : Tensor, shape (batch, kv_heads, past + time, head_dim)
    mask : Tensor of bool, broadcastable to (batch, heads, time, past + time)
        True where a query may attend; None means causal. `Documents`, from
        `build_mask`, mean causal within each document.

    Returns
    -------
    Tensor, shape (batch, heads, time, head_dim)
    """
    if isinstance(mask, Documents):
        return _attend_documents(q, k, v, mask)
    grouped = q.size(1) != k.size(1)
    kernel = kernel_for(
        q, q.size(3), grouped=grouped, masked=mask is not None
    )
    if kernel.path != "sdpa":
        k, v = expand(k, q), expand(v, q)
    if kernel.path == "composed":
        return attention_weights(q, k, mask).to(v.dtype) @ v
    attention = partial(
        F.scaled_dot_product_attention,
        attn_mask=mask,
        is_causal=mask is None and q.size(2) > 1,
        enable_gqa=grouped and kernel.path == "sdpa",
    )
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The backward pass of this kernel is slow on CPUs in bfloat16: with
        # attention alone in float32, a whole step is about 1.4 times faster.
        with torch.autocast("cpu", enabled=False):
            out = attention(q.float(), k.float(), v.float())
        return out.to(q.dtype)
    return attention(q, k, v)


def expand(x: Tensor, q: Tensor) -> Tensor:
    """Copy each head of keys or values for the query heads that share it."""
    if x.size(1) == q.size(1):
        return x
    return x.repeat_interleave(q.size(1) // x.size(1), dim=1)


def attention_weights(q: Tensor, k: Tensor, mask: Mask = None) -> Tensor:
    """Compute the attention weights that SDPA uses internally.

    Parameters
    ----------
    q, k, mask
        As in `attend`.

    Returns
    -------
    Tensor of float32, shape (batch, heads, time, past + time)
    """
    assert not isinstance(mask, Documents)  # build_mask(..., table=True)
    if mask is None:
        time = q.size(2)
        rows, columns = _places(k.size(2) - time, time, q.device)
        mask = columns <= rows
    with torch.autocast(q.device.type, enabled=False):
        k = expand(k, q).float()
        scores = q.float() @ k.transpose(2, 3) / math.sqrt(q.size(-1))
        return scores.masked_fill(~mask, -math.inf).softmax(-1)


def _attend_documents(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents
) -> Tensor:
    """Attend within each document, over the rows laid end to end."""
    from torch.nn.attention import varlen

    options: dict[str, Any] = {"window_size": (-1, 0)}  # causal
    if q.size(1) != k.size(1):
        if _varlen_grouped():
            options["enable_gqa"] = True
        else:  # torch 2.11
            k, v = expand(k, q), expand(v, q)
    # Unlike SDPA, this function does not heed autocast.
    dtype = compute_dtype(q)
    q_, k_, v_ = (
        x.transpose(1, 2).flatten(0, 1).to(dtype) for x in (q, k, v)
    )
    at, longest = documents
    out = varlen.varlen_attn(q_, k_, v_, at, at, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out.unflatten(0, (q.size(0), q.size(2))).transpose(1, 2)


# --- in models of transformers ---------------------------------------------

IMPLEMENTATION = "minimind_core"
"""The name of `attend` among the attention functions of transformers."""


def register_attention() -> str:
    """Register `attend` with transformers, and return its name there.

    A model of transformers uses it once its ``set_attn_implementation`` has
    been called with this name.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attend_in_transformers)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION


def _attend_in_transformers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`attend`, as transformers calls an attention function."""
    usual = scaling is None or math.isclose(scaling, query.size(3) ** -0.5)
    if dropout or not usual:
        from transformers.integrations.sdpa_attention import (
            sdpa_attention_forward,
        )

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling,
            **options,
        )  # fmt: skip
        return out, None
    if attention_mask is not None:
        # Padding may attend to nothing there, which a softmax makes NaN.
        nothing = ~attention_mask.any(-1, keepdim=True)
        attention_mask = attention_mask | nothing
    out = attend(query, key, value, attention_mask)
    return out.transpose(1, 2).contiguous(), None


def fit_attention(model: Any) -> bool:
    """Give a Qwen3 of transformers the attention that suits its device.

    Transformers asks SDPA for grouped heads whenever there is no mask. On a
    T4, or in float32 on any GPU, no fused kernel takes them, see
    `choose_kernel`. On a CPU its own attention is kept.

    Parameters
    ----------
    model
        On its device. Any other model is left as it is, because attention
        may mean more there than `attend` computes: a cap on the scores, a
        window, no causality.

    Returns
    -------
    bool
        Whether the model now uses `attend`.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind != "qwen3" or not hasattr(model, "set_attn_implementation"):
        return False
    if next(model.parameters()).device.type not in ("cuda", "mps"):
        return False
    model.set_attn_implementation(register_attention())
    return True


# --- masks -----------------------------------------------------------------


def build_mask(
    x: Tensor,
    head_dim: int,
    *,
    past: int = 0,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    table: bool = False,
) -> Mask:
    """Build the attention mask, once for all layers.

    Parameters
    ----------
    x : Tensor, shape (batch, time, hidden)
        The embedded new tokens; only their shape, dtype and device are used.
    head_dim : int
    past : int
        Tokens in the cache.
    attention_mask : Tensor, shape (batch, past + time), optional
        0 for padding, 1 for tokens.
    document_ids : Tensor of int64, shape (batch, time), optional
        The tokens of a document are adjacent. On a GPU, finding where
        documents begin waits for all work in flight, unless these ids are
        on the CPU.
    table : bool
        Never return `Documents`.

    Returns
    -------
    Tensor of bool, Documents or None
        None where plain causal attention suffices; `Documents` where a
        kernel for them exists; otherwise a mask that broadcasts to
        (batch, heads, time, past + time).
    """
    if document_ids is not None and past:
        raise ValueError("document_ids cannot be combined with a cache")
    if attention_mask is None:
        if document_ids is None and (past == 0 or x.size(1) == 1):
            return None
        if document_ids is not None and not table:
            kernel = kernel_for(x, head_dim, packed=True)
            if kernel.path == "varlen":
                return find_documents(document_ids, x.device)
    # A boolean mask, because a large negative number added to the
    # scores is not safe in float16 (-1e9 is -inf there).
    rows, columns = _places(past, x.size(1), x.device)
    mask = (columns <= rows)[None, None]
    if document_ids is not None:
        # Without waiting for the GPU, which needs no pinned memory here.
        ids = document_ids.to(
            x.device, non_blocking=x.device.type == "cuda"
        )
        mask = mask & (ids[:, None, :, None] == ids[:, None, None, :])
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, :]
    # Each token may attend to itself: otherwise a row of padding would be a
    # softmax over nothing, which is NaN.
    return mask | (columns == rows)


def find_documents(document_ids: Tensor, device: torch.device) -> Documents:
    """Find where the documents of packed rows begin.

    Parameters
    ----------
    document_ids : Tensor, shape (batch, time)
    device : torch.device
        The device on which to put the offsets.
    """
    first = torch.ones_like(document_ids, dtype=torch.bool)
    first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = first.flatten().nonzero().squeeze(1)
    offsets = F.pad(starts, (0, 1), value=document_ids.numel())
    offsets = offsets.to(device, torch.int32, non_blocking=True)
    # The row's length is an upper bound of a document's, and known without
    # asking the GPU; the kernel's result does not depend on it.
    return Documents(offsets, longest=document_ids.size(1))


def _places(
    past: int, time: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row and column indices of the score matrix."""
    rows = torch.arange(past, past + time, device=device)[:, None]
    return rows, torch.arange(past + time, device=device)
