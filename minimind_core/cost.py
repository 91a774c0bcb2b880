"""Estimate the FLOPs, hours, price and memory of a training run.

    from minimind_core.cost import DEVICES, estimate
    model = get_preset("base").model
    estimate(model, tokens=2e9, seq_len=512, device=DEVICES["T4"],
             utilization=0.3, price_per_hour=0.4).hours

Everything here is computed and nothing is measured. `book.scaling` measures
this machine, so that the estimates can be checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.errors import ConfigError

# --- operations ------------------------------------------------------------


def training_flops(model: ModelConfig, rows: int, seq_len: int) -> int:
    """Count the FLOPs of a forward and backward pass (matrix products only).

    A product of (n, k) and (k, m) takes n k m multiplications and as many
    additions. The backward pass has two products for each one of the
    forward pass. Attention counts in full, as if nothing were masked, which
    is how PyTorch's own counter counts it; the last position of a row
    predicts nothing, so it does not meet the output head.

    Parameters
    ----------
    model : ModelConfig
    rows, seq_len : int
        A batch without padding.
    """
    parts = model.parameters_by_part()
    matrices = parts["attention"] + parts["mlp"]
    head = model.vocab_size * model.hidden_size
    queries = model.num_attention_heads * model.head_width
    forward = (
        2 * matrices * rows * seq_len
        + 2 * head * rows * (seq_len - 1)
        # scores and the weighted sum of values, for each query head
        + 4 * model.num_hidden_layers * queries * rows * seq_len**2
    )
    return 3 * forward


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Count the training FLOPs per token, for rows of this length.

    Six per weight of a matrix, plus a term for attention that grows with the
    length (Kaplan et al., arXiv:2001.08361, have the same terms).
    """
    return training_flops(model, 1, seq_len) / seq_len


def tokens_of(config: TrainConfig) -> int:
    """Return the number of tokens of a run if all rows are full."""
    return config.steps * config.batch_size * config.seq_len


# --- devices and hours -----------------------------------------------------


class Device(NamedTuple):
    """A device, with figures from its vendor.

    Attributes
    ----------
    name : str
    peak : float
        Peak FLOPs per second of dense matrix products in `dtype`, with
        accumulation in float32.
    memory : float
        In bytes (a vendor's GB is 1e9).
    dtype : str
        The half-precision dtype that training uses on it.
    """

    name: str
    peak: float
    memory: float
    dtype: str


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's T4 data sheet: 65 TFLOPS mixed precision, 16 GB.
        Device("T4", 65e12, 16e9, "float16"),
        # NVIDIA's GA102 whitepaper, appendix A: 71 TFLOPS with float32
        # sums, 24 GB.
        Device("RTX 3090", 71e12, 24e9, "bfloat16"),
        # NVIDIA's pages of the two (SXM): 1,979 TFLOPS "with sparsity",
        # which a dense product does not have: half of it.
        Device("H100", 989e12, 80e9, "bfloat16"),
        Device("H200", 989e12, 141e9, "bfloat16"),
    )
}


@dataclass(frozen=True)
class Estimate:
    """The result of `estimate`.

    Attributes
    ----------
    parameters : int
    flops : float
        FLOPs of the whole run.
    hours : float
        Wall-clock time.
    price : float
        In the currency of the price per hour.
    """

    parameters: int
    flops: float
    hours: float
    price: float


def estimate(
    model: ModelConfig,
    *,
    tokens: float,
    seq_len: int,
    device: Device,
    utilization: float,
    price_per_hour: float = 0.0,
    devices: int = 1,
) -> Estimate:
    """Estimate how long a run takes and what it costs.

    Parameters
    ----------
    model : ModelConfig
    tokens : float
        Number of training tokens over all epochs.
    seq_len : int
        Of a row.
    device : Device
    utilization : float
        Share of the peak that is reached (MFU), above 0 and at most 1. It has
        to be measured; see `book.scaling.time_training`.
    price_per_hour : float
        Price of one device, in any currency.
    devices : int
        Number of devices; their communication is not counted.

    Raises
    ------
    ConfigError
        If `utilization` or `devices` is out of range.
    """
    if not 0 < utilization <= 1:
        raise ConfigError(
            f"utilization must be above 0 and at most 1, not {utilization}"
        )
    if devices < 1:
        raise ConfigError(f"devices must be at least 1, not {devices}")
    flops = tokens * flops_per_token(model, seq_len)
    hours = flops / (device.peak * utilization * devices) / 3600
    return Estimate(
        model.num_parameters(), flops, hours, hours * devices * price_per_hour
    )


# --- memory ----------------------------------------------------------------


def training_memory(
    model: ModelConfig, config: TrainConfig
) -> dict[str, int]:
    """Estimate the memory of training in float32, in bytes, by purpose.

    Parameters
    ----------
    model : ModelConfig
    config : TrainConfig
        Its `micro_batch_size` (or `batch_size`), `seq_len` and `optimizer`.

    Returns
    -------
    dict of str to int
        ``weights``, ``gradients``, ``optimizer`` (two numbers per weight for
        AdamW, one per weight of a matrix under Muon) and ``activations``:
        the tensors that the forward pass keeps for the backward pass on a
        CPU. Autocast halves some of them and keeps a copy of each weight in
        two bytes; the kernels of a GPU keep other tensors. Training needs
        some temporary memory in addition; see `passing_memory`.
    """
    parts = model.parameters_by_part()
    total = model.num_parameters()
    matrices = parts["attention"] + parts["mlp"]
    saved = 1 if config.optimizer == "muon" else 2
    rows = config.micro_batch_size or config.batch_size
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 4 * (saved * matrices + 2 * (total - matrices)),
        "activations": _kept(model, rows, config.seq_len),
    }


def _kept(model: ModelConfig, rows: int, seq_len: int) -> int:
    """Bytes of the activations that a forward pass keeps."""
    h, f = model.hidden_size, model.ffn_width
    heads, shared = model.num_attention_heads, model.num_key_value_heads
    q, kv = heads * model.head_width, shared * model.head_width
    layer = (
        2 * (3 * h + 1)  # norms: input, root, result; input of a product
        + (2 * q + heads) + (2 * kv + shared)  # norms of queries and keys
        + q + 2 * kv + q + heads  # attention: q, k, v, result, log-sums
        + 4 * f  # SwiGLU: gate, silu, up, and their product
    )  # fmt: skip
    tokens, supervised = rows * seq_len, rows * (seq_len - 1)
    numbers = (
        tokens * (model.num_hidden_layers * layer + 2 * h + 1)
        + supervised * (h + model.vocab_size)  # the head's input, log-softmax
        + 2 * seq_len * model.head_width  # cosine and sine
        + 1  # the sum of the weights in the loss
    )
    return 4 * numbers + 8 * (tokens + 2 * supervised)  # and ids, in int64


def passing_memory(model: ModelConfig, config: TrainConfig) -> int:
    """Estimate temporary memory: two copies of the logits' gradient."""
    rows = config.micro_batch_size or config.batch_size
    return 8 * rows * (config.seq_len - 1) * model.vocab_size


def largest_rows(model: ModelConfig, config: TrainConfig, room: float) -> int:
    """Return how many rows fit into `room` bytes; 0 if none does."""

    def needed(rows: int) -> int:
        one = config.replace(micro_batch_size=rows)
        parts = training_memory(model, one)
        return sum(parts.values()) + passing_memory(model, one)

    fixed = 2 * needed(1) - needed(2)
    return max(0, math.floor((room - fixed) / (needed(1) - fixed)))
