"""Estimate the FLOPs, hours, price and memory of a training run.

    from minimind_core.cost import DEVICES, estimate
    model = get_preset("base").model
    estimate(model, tokens=2e9, seq_len=512, device=DEVICES["T4"],
             utilization=0.3, price_per_hour=0.4).hours
    hours_by_card("base")["T4"]          # a range, for all of its stages
    print(describe_cost("t4"))

Everything here is computed and nothing is measured. `book.scaling` measures
this machine, so that the estimates can be checked. The calculator in chapter
10 computes the same in the page, in ``book/_static/lab/page/cost.js``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minimind_core.config import (
    PRESETS,
    ModelConfig,
    Preset,
    TrainConfig,
    get_preset,
)
from minimind_core.errors import ConfigError

TRAINED = ("pretrain", "sft", "lora")
"""The stages of a journey that train a model, and that a preset has settings
for; the others take seconds."""

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


class Span(NamedTuple):
    """A range of hours: the estimate from a high and a low utilization.

    Attributes
    ----------
    low, high : float
    """

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The geometric mean, which is as far from both in proportion."""
        return math.sqrt(self.low * self.high)

    def __str__(self) -> str:
        """The range in words, such as ``19 to 56 minutes``."""
        if self.high < 1 / 60:
            return "less than a minute"
        low, high, unit = self.low, self.high, "hours"
        if self.high < 1.5:
            low, high, unit = 60 * low, 60 * high, "minutes"
        first, last = _rounded(low), _rounded(high)
        if first == last:
            return f"{last} {unit.removesuffix('s') if last == '1' else unit}"
        return f"{first} to {last} {unit}"


def _rounded(number: float) -> str:
    """A number with one decimal if it is small."""
    if number < 9.95:
        return f"{number:.1f}".removesuffix(".0")
    return f"{number:,.0f}"


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
    peak32 : float
        Peak FLOPs per second in float32. It is the figure without tensor
        cores, because PyTorch does not round float32 products to TF32 unless
        it is told to.
    utilization : tuple of float
        The lowest and the highest share of `peak` to expect of training; see
        `UTILIZATION`.
    """

    name: str
    peak: float
    memory: float
    dtype: str
    peak32: float = math.nan
    utilization: tuple[float, float] = (0.1, 0.5)


UTILIZATION = {
    "bfloat16": (0.1, 0.5),
    "float16 on a T4": (0.1, 0.3),
    "float32": (0.2, 0.7),
}
"""Shares of the vendor's peak (MFU) that the ranges of hours are made of.

They are assumptions, wide on purpose, and no measurements of ours. Their
upper end for bfloat16 is what well-tuned training of models of this size has
reached: nanoGPT's GPT-2 of 124M parameters takes about 4 days on 8 A100, by
its README, which is 29%, and on an RTX 4090 a user reported 29% of an A100's
peak, which is 55% of that card's own (karpathy/nanoGPT, issue 182); the hours
that MiniMind's README states for an RTX 3090 would be 33 to 56%, as chapter
10 works out. The lower end is for models so narrow that a kernel finishes
before the next is started: nanoGPT's model of 6 layers of width 384 takes
about 3 minutes on an A100 by its README, which is 10%. A T4 may draw only
70 W, and lowers its clock under load (Jia et al., arXiv:1903.07486, study
this), so that we expect less of its data sheet's peak. In float32, without
tensor cores, products are slower and it is easier to keep up with them."""

DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's T4 data sheet: 65 TFLOPS mixed precision, 8.1 in single
        # precision, 16 GB.
        Device("T4", 65e12, 16e9, "float16", 8.1e12,
               UTILIZATION["float16 on a T4"]),
        # NVIDIA's page of the L4: 242 TFLOPS "with sparsity", so 121; 30.3
        # in FP32, 24 GB.
        Device("L4", 121e12, 24e9, "bfloat16", 30.3e12),
        # NVIDIA's GA102 whitepaper, appendix A: 71 TFLOPS with float32
        # sums, 35.6 in FP32, 24 GB.
        Device("RTX 3090", 71e12, 24e9, "bfloat16", 35.6e12),
        # NVIDIA's Ada whitepaper, appendix A: 165.2 TFLOPS with float32
        # sums, 82.6 in FP32, 24 GB.
        Device("RTX 4090", 165.2e12, 24e9, "bfloat16", 82.6e12),
        # NVIDIA's A100 data sheet: 312 TFLOPS, 19.5 in FP32. It is sold with
        # 40 and with 80 GB; this is the one that Colab has.
        Device("A100", 312e12, 40e9, "bfloat16", 19.5e12),
        # NVIDIA's pages of the two (SXM): 1,979 TFLOPS "with sparsity",
        # which a dense product does not have: half of it; 67 in FP32.
        Device("H100", 989e12, 80e9, "bfloat16", 67e12),
        Device("H200", 989e12, 141e9, "bfloat16", 67e12),
    )
}

# One to a few cores. The data sheet of a processor states no such peak, so
# this is a guess: on one core of the machine that the book is built on, a
# matrix product in float32 reaches 1.1e11, and training nearly as much.
PROCESSOR = Device(
    "a processor", 2e11, 16e9, "bfloat16", 2e11, (0.1, 1.0)
)


def find_card(name: str) -> Device | None:
    """Return the one of `DEVICES` that a driver calls by this name.

    Parameters
    ----------
    name : str
        For example ``Tesla T4`` or ``NVIDIA A100-SXM4-40GB``.

    Returns
    -------
    Device or None
    """
    for card in DEVICES.values():
        if re.search(rf"\b{card.name}\b(?! Ti)", name):
            return card
    return None


def device_called(kind: str, name: str) -> tuple[Device, str]:
    """Return the figures to count with for a device, and what to call it.

    Parameters
    ----------
    kind : {"cpu", "cuda", "mps"}
    name : str
        As the driver calls it; see `precision.DeviceFacts`.

    Returns
    -------
    device : Device
        A GPU that is not in `DEVICES` counts as the slowest of them.
    called : str
    """
    if kind == "cpu":
        return PROCESSOR, "this processor"
    if card := find_card(name):
        return card, f"this {card.name}"
    return DEVICES["T4"], f"this {name}, counted as a T4"


def peak_of(device: Device, dtype: str = "auto") -> float:
    """Return the peak FLOPs per second of a device in a number format."""
    return device.peak32 if dtype == "float32" else device.peak


def utilization_of(
    device: Device, dtype: str = "auto"
) -> tuple[float, float]:
    """Return the range of utilizations to expect; see `UTILIZATION`."""
    if dtype == "float32" and device is not PROCESSOR:
        return UTILIZATION["float32"]
    return device.utilization


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
    dtype: str = "auto",
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
    dtype : str
        ``float32``, or anything else for the device's half precision.

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
    peak = peak_of(device, dtype)
    hours = flops / (peak * utilization * devices) / 3600
    return Estimate(
        model.num_parameters(), flops, hours, hours * devices * price_per_hour
    )


def _trainings(
    what: str | Preset | ModelConfig, configs: Sequence[TrainConfig]
) -> tuple[str, ModelConfig, Sequence[TrainConfig]]:
    """A name, a shape, and the trainings whose cost is asked for."""
    if isinstance(what, ModelConfig):
        if not configs:
            raise ConfigError(
                "the cost of a ModelConfig depends on its training: pass a "
                "TrainConfig as well, or the name of a preset"
            )
        return "this model", what, configs
    preset = get_preset(what)
    own = [getattr(preset, stage) for stage in TRAINED]
    return preset.name, preset.model, configs or own


def hours_on(
    device: Device,
    what: str | Preset | ModelConfig,
    *configs: TrainConfig,
    dtype: str = "auto",
) -> Span:
    """Estimate the hours of training on one device, as a range.

    Parameters
    ----------
    device : Device
    what : str, Preset or ModelConfig
    *configs : TrainConfig
        The trainings to add up. Those of a preset are pretraining,
        fine-tuning and LoRA if none is given.
    dtype : str
        As in `estimate`.

    Returns
    -------
    Span
        Hours at the highest and at the lowest utilization that is expected.
        All rows count as full, and LoRA as if all weights were trained, so
        this leans to the long side. Validation, saving and the optimizer are
        left out.

    Raises
    ------
    ConfigError
        For an unknown preset, or a model without a training.
    """
    _, shape, trainings = _trainings(what, configs)
    flops = sum(
        tokens_of(one) * flops_per_token(shape, one.seq_len)
        for one in trainings
    )
    low, high = utilization_of(device, dtype)
    whole = flops / peak_of(device, dtype) / 3600
    return Span(whole / high, whole / low)


def hours_by_card(
    what: str | Preset | ModelConfig,
    *configs: TrainConfig,
    dtype: str = "auto",
) -> dict[str, Span]:
    """Estimate the hours of training on each of `DEVICES`.

    Parameters
    ----------
    what, *configs, dtype
        As in `hours_on`.

    Returns
    -------
    dict of str to Span

    Raises
    ------
    ConfigError
        As in `hours_on`.
    """
    return {
        name: hours_on(card, what, *configs, dtype=dtype)
        for name, card in DEVICES.items()
    }


def describe_cost(
    what: str | Preset | ModelConfig,
    *configs: TrainConfig,
    dtype: str = "auto",
) -> str:
    """Describe what a training takes: tokens, memory, hours by card.

    Parameters
    ----------
    what, *configs, dtype
        As in `hours_on`.

    Returns
    -------
    str
        Several lines. It calls the hours an estimate.

    Raises
    ------
    ConfigError
        As in `hours_on`.
    """
    name, shape, trainings = _trainings(what, configs)
    tokens = sum(map(tokens_of, trainings))
    largest = max(needed(shape, one, dtype) for one in trainings)
    lines = [
        f"{name}: {shape.num_parameters() / 1e6:,.1f}M parameters, at most "
        f"{tokens / 1e6:,.0f}M tokens, {largest / 1e9:,.1f} GB of memory;",
        "estimated time, and the share of the card's peak that it assumes:",
    ]
    for card, span in hours_by_card(what, *configs, dtype=dtype).items():
        low, high = utilization_of(DEVICES[card], dtype)
        room = "" if largest < ROOM * DEVICES[card].memory else (
            "; too large for its memory, lower micro_batch_size"
        )  # fmt: skip
        lines.append(
            f"  {card:<9} {span}, at {high:.0%} to {low:.0%}{room}"
        )
    return "\n".join(lines)


LONG = 10 / 60
"""Hours from which a training is worth a warning."""


def foresee(
    model: ModelConfig, config: TrainConfig, kind: str, name: str
) -> str:
    """Describe how long a training will take, if it will take long.

    Parameters
    ----------
    model : ModelConfig
    config : TrainConfig
    kind, name : str
        Of the device; see `device_called`.

    Returns
    -------
    str
        Empty if the middle of the estimated range is below ten minutes.
    """
    device, called = device_called(kind, name)
    dtype = "float32" if config.dtype == "float32" else "auto"
    span = hours_on(device, model, config, dtype=dtype)
    if span.middle < LONG:
        return ""
    size = needed(model, config, dtype) / 1e9
    return (
        f"{config.steps:,} steps of up to "
        f"{config.batch_size * config.seq_len:,} tokens: an estimated {span} "
        f"on {called}, and {size:.1f} GB of memory"
    )


def compare_costs(
    presets: Iterable[str | Preset] = tuple(PRESETS),
    stages: Sequence[str] = TRAINED,
    cards: Sequence[str] = ("T4", "RTX 3090", "A100", "H100"),
) -> str:
    """Lay out in a table what the trainings of several presets take.

    Parameters
    ----------
    presets : iterable of str or Preset
    stages : sequence of str
        Those of `TRAINED` to add up; at least one.
    cards : sequence of str
        Some of `DEVICES`.

    Returns
    -------
    str
        A line for each preset, below a line of headings.
    """
    rows = [["size", "tokens", "memory", *cards]]
    for one in map(get_preset, presets):
        runs = [getattr(one, stage) for stage in stages]
        largest = max(needed(one.model, run) for run in runs)
        rows.append([
            one.name,
            f"{sum(map(tokens_of, runs)) / 1e6:,.0f}M",
            f"{largest / 1e9:.1f} GB",
            *(_short(hours_on(DEVICES[card], one, *runs)) for card in cards),
        ])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(
                zip(row, widths, strict=True)
            )
        )
        for row in rows
    )


def _short(span: Span) -> str:
    """A range of hours for a table."""
    if span.high < 0.1:
        return "below 0.1 h"
    return f"{_rounded(max(span.low, 0.1))} to {_rounded(span.high)} h"


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


def copied_memory(model: ModelConfig) -> int:
    """Estimate the copies of the matrices that autocast makes, in bytes.

    Under autocast each matrix has a copy in two bytes per weight, which is
    kept for the backward pass, whatever the size of the batch.
    """
    parts = model.parameters_by_part()
    head = model.vocab_size * model.hidden_size
    return 2 * (parts["attention"] + parts["mlp"] + head)


ROOM = 0.9
"""The share of a card's memory that a training may be planned to fill. CUDA
itself, its libraries and what the allocator cannot reuse take the rest."""


def needed(
    model: ModelConfig, config: TrainConfig, dtype: str = "auto"
) -> int:
    """Estimate all the memory of a training step on a GPU, in bytes.

    Parameters
    ----------
    model : ModelConfig
    config : TrainConfig
    dtype : str
        ``float32``, or anything else for half precision under autocast.

    Returns
    -------
    int
        What `training_memory`, `passing_memory` and, under autocast,
        `copied_memory` count. The activations are those of float32 in either
        case, of which autocast halves some, so this leans to the large side:
        for ``base`` with 32 rows of 512 tokens, `training_memory` counts
        11.5 GB, of which an H200 took 11.1 GB in float32, 7.5 GB in bfloat16
        and 5.1 GB in bfloat16, compiled (``benchmarks/gpu.py``).
    """
    copies = 0 if dtype == "float32" else copied_memory(model)
    kept = sum(training_memory(model, config).values())
    return kept + passing_memory(model, config) + copies


def largest_rows(
    model: ModelConfig,
    config: TrainConfig,
    room: float,
    dtype: str = "float32",
) -> int:
    """Return how many rows fit into `room` bytes; 0 if none does."""

    def with_rows(rows: int) -> int:
        return needed(model, config.replace(micro_batch_size=rows), dtype)

    fixed = 2 * with_rows(1) - with_rows(2)
    return max(0, math.floor((room - fixed) / (with_rows(1) - fixed)))
