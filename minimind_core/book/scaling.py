"""Measure this machine, and fit loss against compute.

    from minimind_core.book.scaling import fit_power_law, time_training
    time_training(model, config).rate         # operations a second
    fit_power_law(compute, losses).exponent

`minimind_core.cost` estimates what a training run needs. This module measures
it, so that the estimates can be checked, and fits the curves of chapter 10 to
the measurements.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.cost import Device, training_flops
from minimind_core.errors import ConfigError
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer

# --- several devices -------------------------------------------------------


def step_seconds(
    model: ModelConfig,
    config: TrainConfig,
    *,
    device: Device,
    utilization: float,
    devices: int,
    bandwidth: float,
) -> tuple[float, float]:
    """Estimate an optimizer step on several devices.

    Each device computes its share of the batch, then all add their float32
    gradients in a ring, in which each sends ``2 (n - 1) / n`` times their
    size (Patarasuk and Yuan, 2009). The estimate can be wrong both ways:
    PyTorch hides a part of the exchange behind the backward pass, and no
    link reaches its full bandwidth all the time.

    Parameters
    ----------
    model : ModelConfig
    config : TrainConfig
        Its `batch_size` and `seq_len`.
    device : Device
    utilization : float
    devices : int
    bandwidth : float
        Bytes per second that a device can send over its slowest link.

    Returns
    -------
    computing, exchanging : float
        In seconds.
    """
    flops = training_flops(model, config.batch_size, config.seq_len)
    computing = flops / (devices * device.peak * utilization)
    sent = 2 * (devices - 1) / devices * 4 * model.num_parameters()
    return computing, sent / bandwidth


# --- memory, measured ------------------------------------------------------


def kept_for_backward(model: nn.Module, **batch: Any) -> int:
    """Measure the bytes that a forward pass keeps, without the weights.

    This inspects every tensor that autograd saves; tensors that share memory
    are counted once.

    Parameters
    ----------
    model : nn.Module
    **batch
        Arguments of the model; must lead to a loss.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(look, lambda tensor: tensor):
        loss = model(**batch).loss
    found = sum(storage.nbytes() for storage in kept.values())
    del loss
    return found


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimizer's state, without step counters."""
    parts: Sequence[Optimizer] = list(
        getattr(optimizer, "parts", {"": optimizer}).values()
    )
    return sum(
        value.numel() * value.element_size()
        for part in parts
        for state in part.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )


# --- this machine ----------------------------------------------------------


def matmul_rate(
    size: int = 768, *, seconds: float = 0.5, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:  # fmt: skip
    """Measure the peak FLOPs per second of a square matrix product.

    Parameters
    ----------
    size : int
        Rows and columns.
    seconds : float
        How long to measure; the fastest repetition counts.
    device : str
    dtype : torch.dtype
    """
    a = torch.randn(size, size, device=device).to(dtype)
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < seconds or math.isinf(best):
        _wait(device)
        begun = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


class Timing(NamedTuple):
    """The timing of a short training run.

    Attributes
    ----------
    seconds : float
        Time of the fastest optimizer step.
    rate : float
        FLOPs per second, counted by `training_flops`.
    """

    seconds: float
    rate: float


def time_training(
    model: ModelConfig,
    config: TrainConfig,
    *,
    steps: int = 4,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Timing:
    """Train a few steps on random tokens, and time them.

    With one thread on a processor its own time is taken, which other
    programs hardly affect; otherwise the time on the clock.

    Parameters
    ----------
    model : ModelConfig
    config : TrainConfig
        Its batch, row length and optimizer.
    steps : int
        Number of timed steps, after one warm-up step.
    device : str
    dtype : torch.dtype, optional
        Dtype for autocast; float32 if not given.
    """
    rows, length = config.batch_size, config.seq_len
    net = MiniMind(model).to(device)
    name = str(dtype or torch.float32).removeprefix("torch.")
    optimizer = build_optimizer(net, config, name)
    ids = torch.randint(model.vocab_size, (rows, length), device=device)
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    best = math.inf
    for _ in range(steps + 1):
        _wait(device)
        started = clock()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = net(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        best = min(best, clock() - started)
    return Timing(best, training_flops(model, rows, length) / best)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --- loss against compute --------------------------------------------------


class PowerLaw(NamedTuple):
    """``y = scale * x ** -exponent``, as fitted by `fit_power_law`.

    Attributes
    ----------
    scale, exponent : float
    spread : float
        Root mean square of the residuals, as a factor: 1.05 is 5 %.
    """

    scale: float
    exponent: float
    spread: float

    def __call__(self, x: float) -> float:
        return float(self.scale * x**-self.exponent)


def fit_power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """Fit a line to the logarithms by least squares.

    Parameters
    ----------
    xs, ys : sequence of float
        Positive. If the floor is known, subtract it from `ys`, so that only
        two parameters are fitted.

    Raises
    ------
    ConfigError
        For fewer than three points, or one that is not positive.
    """
    if len(xs) < 3 or min(*xs, *ys) <= 0:
        raise ConfigError(
            "a power law needs three points or more, all of them positive"
        )
    u = [math.log(x) for x in xs]
    v = [math.log(y) for y in ys]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    slope = sum(
        (a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)
    ) / sum((a - mean_u) ** 2 for a in u)
    start = mean_v - slope * mean_u
    left = [b - start - slope * a for a, b in zip(u, v, strict=True)]
    rms = math.sqrt(sum(e * e for e in left) / len(left))
    return PowerLaw(math.exp(start), -slope, math.exp(rms))


def frontier(
    points: Sequence[tuple[float, float]],
) -> list[tuple[float, float]]:
    """Return the points that no cheaper point matches (Pareto frontier).

    Parameters
    ----------
    points : sequence of (compute, loss)

    Returns
    -------
    list of (compute, loss)
        By rising compute and falling loss.
    """
    best: list[tuple[float, float]] = []
    for compute, loss in sorted(points):
        if not best or loss < best[-1][1]:
            best.append((compute, loss))
    return best
