"""Measure which number format trains a model faster on this CPU.

    from minimind_core.calibration import choose_precision
    precision = choose_precision(model=model, batch_size=32, seq_len=128)
    print(precision.reason)

On a GPU the answer is known from its generation. On a CPU it is not, because
the flags that say "this processor has bfloat16" say nothing about speed: see
`precision.StepTimings`. So one training step of the given model is timed in
float32 and in bfloat16, and the faster format runs. This takes a fraction of
a second for a small model, and the result is kept in the cache for the next
run of the same kind.

The choice is made once, when a run starts. Which dtype it was decides the
result to the bit, so a run records it, and resuming takes the recorded one
(`resolve(device, dtype, origin="as recorded by the run")`) instead of
choosing again. In a distributed run the first process chooses and sends its
dtype to the others, for the same reason.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.cache import recall, remember
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.errors import ConfigError
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer, gradient_norm, muon_dtype
from minimind_core.precision import (
    DeviceFacts,
    Precision,
    StepTimings,
    detect_device,
    resolve,
)
from minimind_core.version import __version__

# The fields that determine the time of a step. `ModelConfig` and the configs
# of Hugging Face models use the same names.
SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "intermediate_size",
)  # fmt: skip
NOTHING_SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
# A step on this many tokens is long enough to be timed and short enough for
# nobody to notice.
TOKENS = 1024
# A larger model is measured with fewer of its layers, which are all alike,
# with a part of its vocabulary and on fewer tokens: as many as need about
# this many operations, with 6 for each parameter and token.
PARAMETERS = 15_000_000
VOCABULARY = 8_192
OPERATIONS = 2e10
FEWEST_TOKENS = 128
# Rounds of one step in each format, and the time after which no other round
# begins.
ROUNDS = 5
SECONDS = 0.3


def measure_step(
    model: nn.Module | ModelConfig,
    batch_size: int,
    seq_len: int,
    *,
    optimizer: str = "adamw",
) -> StepTimings:
    """Time a training step in float32 and in bfloat16 on the CPU.

    The steps are taken by a new model of the same shape on random tokens, so
    neither `model` nor the random state of the process changes. The two
    formats take turns, and of each the fastest step counts, because whatever
    else the machine does can only make a step slower. With one thread,
    processor time is taken instead of time on the clock, and then it hardly
    matters what else is running.

    Parameters
    ----------
    model : nn.Module or ModelConfig
        A `MiniMind`, or a module whose ``config`` has the same fields, such
        as a `Qwen3ForCausalLM` or a peft model of one.
    batch_size : int
        Rows of a forward pass. As many of them are used as make about 1,000
        tokens, or fewer for a large model, but at least one.
    seq_len : int
        Tokens of a row, which is shortened if one is already too much.
    optimizer : {"adamw", "muon"}
        Which optimizer takes the step.

    Returns
    -------
    StepTimings

    Raises
    ------
    ConfigError
        If the model's config does not have these fields.

    Notes
    -----
    A model of more than 15 million parameters is measured with as many of
    its layers as stay below this number, at least one, and with 8,192
    entries of its vocabulary at most, so that the measurement takes seconds
    and never needs as much memory as the training. All parameters are
    trained in the measured step, also if those of `model` are frozen.
    """
    shape = shape_of(model)
    if shape is None:
        raise ConfigError(
            f"{type(model).__name__}: its config lacks some of "
            f"{', '.join(SHAPE)}, so no model of the same shape can be built "
            "to time a step; name a dtype instead"
        )
    shape = _capped(shape, seq_len)
    rows, seq_len = _batch(shape, batch_size, seq_len)
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),  # gradients on, whatever the caller has
        torch.autocast("cpu", enabled=False),
    ):
        torch.manual_seed(0)
        step = _training_step(shape, rows, seq_len, optimizer)
        best = _best_times(step)
    batch = f"{rows} row{'s' if rows > 1 else ''} of {seq_len} tokens"
    return StepTimings(best["float32"], best["bfloat16"], batch)


def choose_precision(
    device: str = "auto",
    dtype: str = "auto",
    *,
    model: nn.Module | ModelConfig,
    batch_size: int,
    seq_len: int,
    optimizer: str = "adamw",
    facts: DeviceFacts | None = None,
) -> Precision:
    """Choose the number format in which to train a model.

    As `precision.resolve`, with a measurement where it matters: on a CPU
    that has bfloat16, if no dtype was named. An earlier measurement on
    this processor, with this version of torch, this number of threads and a
    model of this shape is read from the cache.

    Parameters
    ----------
    device, dtype : str
        See `precision.resolve`.
    model, batch_size, seq_len, optimizer
        See `measure_step`. Set the number of threads before, because it
        changes the times.
    facts : DeviceFacts, optional
        Detected if not given.

    Returns
    -------
    Precision
        Its reason states both speeds. A model whose config lacks the fields
        gets float32.

    Raises
    ------
    PrecisionError
        See `precision.resolve`.
    """
    facts = facts or detect_device(device)
    if dtype != "auto" or facts.type != "cpu" or not facts.bf16:
        return resolve(device, dtype, facts=facts)
    timings = step_timings(
        model, batch_size, seq_len, optimizer=optimizer, facts=facts
    )
    chosen = resolve(device, dtype, facts=facts, timings=timings)
    if timings is None:
        return dataclasses.replace(
            chosen,
            reason=f"{facts.name}: float32, because a step of "
            f"{type(model).__name__} in bfloat16 cannot be measured (its "
            "config is not like Qwen3's); ask for bfloat16 to try it",
        )
    return chosen


def step_timings(
    model: nn.Module | ModelConfig,
    batch_size: int,
    seq_len: int,
    *,
    optimizer: str = "adamw",
    facts: DeviceFacts,
) -> StepTimings | None:
    """Return `measure_step`'s result, from the cache if possible.

    Parameters
    ----------
    model, batch_size, seq_len, optimizer
        See `measure_step`.
    facts : DeviceFacts
        Of this CPU.

    Returns
    -------
    StepTimings or None
        None for a model whose config lacks the fields.
    """
    shape = shape_of(model)
    if shape is None:
        return None
    shape = _capped(shape, seq_len)
    key = {
        "processor": facts.name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "minimind_core": __version__,
        "model": shape.to_dict(),
        "batch": _batch(shape, batch_size, seq_len),
        "optimizer": optimizer,
    }
    kept = recall("step_timings", key)
    timings = None if kept is None else _timings(kept)
    if timings is None:
        timings = measure_step(
            shape, batch_size, seq_len, optimizer=optimizer
        )
        # If this fails, the next run measures again.
        remember("step_timings", key, dataclasses.asdict(timings))
    return timings


def shape_of(model: nn.Module | ModelConfig) -> ModelConfig | None:
    """Return the shape of a model, as far as it affects the step time.

    Parameters
    ----------
    model : nn.Module or ModelConfig

    Returns
    -------
    ModelConfig or None
        None if the model has no config with these fields.
    """
    if isinstance(model, ModelConfig):
        return model
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig):
        return config
    values = {name: getattr(config, name, None) for name in SHAPE}
    if None in values.values():
        return None
    values["head_dim"] = getattr(config, "head_dim", None)
    values["tie_word_embeddings"] = bool(
        getattr(config, "tie_word_embeddings", False)
    )
    try:
        # No token of a measurement is special, and 0 is in any vocabulary.
        return ModelConfig.from_dict({**values, **NOTHING_SPECIAL})
    except ConfigError:  # widths or types that this model cannot have
        return None


def _capped(shape: ModelConfig, seq_len: int) -> ModelConfig:
    """A shape that can be measured quickly in place of a larger one."""
    shape = shape.replace(
        vocab_size=min(shape.vocab_size, VOCABULARY),
        max_position_embeddings=seq_len,
        **NOTHING_SPECIAL,
    )
    layers = shape.num_hidden_layers
    while layers > 1 and shape.num_parameters() > PARAMETERS:
        layers -= 1
        shape = shape.replace(num_hidden_layers=layers)
    return shape


def _batch(
    shape: ModelConfig, batch_size: int, seq_len: int
) -> tuple[int, int]:
    """The rows of a measured step, and the tokens of each."""
    most = int(OPERATIONS / (6 * shape.num_parameters()))
    most = min(max(most, FEWEST_TOKENS), TOKENS)
    seq_len = min(seq_len, most)
    return max(1, min(batch_size, most // seq_len)), seq_len


def _training_step(
    shape: ModelConfig, rows: int, seq_len: int, optimizer: str
) -> Callable[[str], None]:
    """A function that takes one step in a given dtype."""
    model = MiniMind(shape)
    config = TrainConfig.from_dict({"optimizer": optimizer})
    moving = build_optimizer(model, config)
    ids = torch.randint(shape.vocab_size, (rows, seq_len))

    def step(dtype: str) -> None:
        precision = Precision("cpu", dtype, False, "a measurement")
        moving.zero_grad(set_to_none=True)
        for group in moving.param_groups:
            if group.get("use_muon"):
                group["ns_dtype"] = muon_dtype(dtype)
        with precision.autocast():
            loss: Tensor = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradient_norm(model, 1.0)
        moving.step()

    return step


def _best_times(step: Callable[[str], None]) -> dict[str, float]:
    """Seconds of the fastest step in each dtype, which take turns."""
    best = {"float32": math.inf, "bfloat16": math.inf}
    clock = _clock()
    begun = time.perf_counter()
    for dtype in best:
        step(dtype)  # the first one allocates, and is not timed
    for _ in range(ROUNDS):
        for dtype in best:
            started = clock()
            step(dtype)
            best[dtype] = min(best[dtype], clock() - started)
        if time.perf_counter() - begun > SECONDS:
            break
    return best


def _clock() -> Callable[[], float]:
    """Processor time if it means something here, else time on the clock.

    With several threads it means little: a thread that waits for another
    may spin, which counts as work. Windows counts it in steps of 16 ms.
    """
    fine = time.get_clock_info("process_time").resolution < 1e-4
    if fine and torch.get_num_threads() == 1:
        return time.process_time
    return time.perf_counter


def _timings(kept: Mapping[str, Any]) -> StepTimings | None:
    """Timings from the cache, or None if they are invalid."""
    try:
        timings = StepTimings(
            float(kept["float32"]), float(kept["bfloat16"]),
            str(kept["batch"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None
    sound = 0 < timings.float32 < 1e6 and 0 < timings.bfloat16 < 1e6
    return timings if sound else None
