"""One training loop for pretraining, fine-tuning and LoRA.

    trainer = Trainer(model, stream, config)
    history = trainer.fit()

    torchrun --nproc-per-node 2 -m minimind_core pretrain --out runs/p

The loop trains any module with the call signature of a Hugging Face causal
model: a `MiniMind`, a `Qwen3ForCausalLM`, a peft model. Under torchrun it is
distributed; the global batch, and therefore the result, stays the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from minimind_core.acceleration import accelerate, float32_products
from minimind_core.attention import fit_attention
from minimind_core.callbacks import Callback
from minimind_core.checkpoint import (
    LOG_FILE,
    all_finite,
    begin_shards,
    last_sound,
    load_checkpoint,
    save_checkpoint,
)
from minimind_core.config import TrainConfig
from minimind_core.data import (
    Row,
    RowStream,
    as_stream,
    collate,
    count_labels,
    count_tokens,
)
from minimind_core.data.packing import pin, send
from minimind_core.data.prefetch import Batch, BatchLoader
from minimind_core.distributed import join_processes, local_device
from minimind_core.errors import (
    CheckpointError,
    ConfigError,
    TrainingError,
)
from minimind_core.files import atomic_file, writing
from minimind_core.optim import (
    build_optimizer,
    gradient_norm,
    learning_rate_scale,
    set_learning_rates,
)
from minimind_core.precision import Precision, detect_device, resolve
from minimind_core.run import Record, read_log
from minimind_core.sharding import (
    Shards,
    gathered,
    is_sharded,
    split_like,
    write_tensors,
)

Check = Callable[[nn.Module], Record]

NO_EFFECT = {
    "log_every", "validate_every", "sample_every", "save_every",
    "on_nonfinite", "max_skipped", "on_bad_record",
}  # fmt: skip
"""Settings that a resumed run may change, because they do not affect what
the steps compute."""

AHEAD = 2
"""Batches that are prepared while a GPU computes."""

ROUNDING = {
    "device", "dtype", "threads", "micro_batch_size", "tf32", "compile",
    "activation_checkpointing", "loss_chunk", "shard",
}  # fmt: skip
"""Settings that a resumed run may change with a warning. They change
the order or precision of sums, so that the result no longer equals that of an
uninterrupted run to the bit. The resolved values are compared, not the
requested ones (`Trainer.runtime`)."""


# --- progress --------------------------------------------------------------


@dataclass
class Progress:
    """Shows progress: a bar in a terminal, otherwise lines of plain text.

    Parameters
    ----------
    title : str
    total : int
        Steps of the whole run.
    stream : file or None
        None shows nothing.
    every : float
        Seconds between two lines, if `stream` is not a terminal.
    """

    title: str
    total: int
    stream: TextIO | None = field(default_factory=lambda: sys.stdout)
    every: float = 10.0
    shown: float = field(default_factory=time.monotonic)
    bar: Any = None

    def show(self, record: Record, *, last: bool = False) -> None:
        """Show a log record, if enough time has passed."""
        if self.stream is None:
            return
        loss = record["loss"]
        numbers = (
            f"loss {'not finite' if loss is None else format(loss, '.3f')}"
            f"  {record['tokens_per_second']:,.0f} tokens/s"
        )
        if self.stream.isatty():
            self._show_bar(record["step"], numbers)
            return
        now = time.monotonic()
        if not last and now - self.shown < self.every:
            return
        self.shown = now
        self.say(
            f"{self.title} {record['step']}/{self.total}  {numbers}"
            f"  {record['seconds']:.0f} s"
        )

    def _show_bar(self, step: int, numbers: str) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total, desc=self.title, initial=step - 1,
                unit="step", file=self.stream, dynamic_ncols=True,
            )  # fmt: skip
        self.bar.set_postfix_str(numbers, refresh=False)
        self.bar.update(step - self.bar.n)

    def say(self, text: str) -> None:
        """Show a line of text, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        elif self.stream is not None:
            self.stream.write(text + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Leave the last state of the bar in the terminal."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


# --- the loop --------------------------------------------------------------


def _call_options(model: nn.Module) -> dict[str, Any]:
    """Arguments that a model needs in training besides the batch.

    A model of transformers tells the documents of a packed row apart by
    their positions, which start over, but only without a cache. By default
    it makes one, and then the documents would see each other.
    """
    config = getattr(model, "config", None)
    return {"use_cache": False} if hasattr(config, "use_cache") else {}


def _part(value: Tensor, parameter: Tensor) -> Tensor:
    """The part of a read tensor that belongs to a held parameter."""
    if is_sharded(value) or value.shape != parameter.shape:
        return value  # or it is a count of steps
    return split_like(value, parameter)


class Trainer:
    """Train a model on a stream of rows.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(input_ids=, labels=, num_items_in_batch=)``; only
        parameters with ``requires_grad`` are trained. Trained in place;
        with ``shard``, it has its weights only in checks and after `fit`.
    stream : RowStream or iterable
        `Rows`, `Mixture`, or any iterable of rows or batches; see
        `minimind_core.data.as_stream`.
    config : TrainConfig
    precision : Precision, optional
        Resolved from the config if not given.
    optimizer : Optimizer or callable, optional
        Replaces the config's; a callable takes the model and returns one.
    schedule : callable, optional
        Replaces the config's: takes the number of the step, counted from 0,
        and returns the factor on every peak learning rate.
    callbacks : sequence of Callback
        Called at fixed places, see `minimind_core.callbacks`.
    validate, sample : callable, optional
        Called with the model at regular intervals and at the end; the dict
        that they return is added to the log.
    out : path, optional
        Folder for ``log.jsonl`` and checkpoints; without it, nothing is
        written.
    title : str
        Of the progress bar.
    progress : bool
    state : dict, optional
        Stored in every checkpoint and compared on resuming; for example,
        the digest of the tokenizer.
    pad_token_id : int

    Attributes
    ----------
    step : int
        Optimizer steps done.
    tokens, supervised_tokens : int
        Tokens read so far, without padding, and supervised tokens so far.
    history : list of dict
        The log.
    waited : float
        Seconds of this process's steps that were spent on getting batches:
        on a CPU preparing them, on a GPU waiting for the thread that does.
    stopped : str
        Why the run was stopped early; empty if it was not.
    skipped_steps : int
        Steps that the optimizer did not take, because the loss or a gradient
        was not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: RowStream | Iterable[Any],
        config: TrainConfig,
        *,
        precision: Precision | None = None,
        optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
        schedule: Callable[[int], float] | None = None,
        callbacks: Sequence[Callback] = (),
        validate: Check | None = None,
        sample: Check | None = None,
        out: str | Path | None = None,
        title: str = "training",
        progress: bool = True,
        state: Record | None = None,
        pad_token_id: int = 0,
    ) -> None:
        self.config = config
        precision = precision or resolve(config.device, config.dtype)
        self.device = local_device(precision.device)
        self.processes = join_processes(self.device)
        # Each process may have measured, and therefore chosen, differently.
        self.precision = self.processes.broadcast(precision)
        self._use_threads(config.threads or torch.get_num_threads())
        if not self.processes.is_main:
            # Every process gets the same weights, but its own dropout.
            torch.manual_seed(config.seed + self.processes.rank)
        self.model = model.to(self.device)
        fit_attention(self.model)
        faster: dict[str, Any] = {
            "compile": config.compile,
            "activation_checkpointing": config.activation_checkpointing,
            "loss_chunk": config.loss_chunk,
        }
        accelerate(self.model, **faster)
        self._options = _call_options(model)
        self.stream = as_stream(stream)
        # On a CPU a thread would only take time from the computation.
        self._batches = BatchLoader(
            self.stream, config.batch_size, self._prepare,
            ahead=AHEAD if self.device.startswith("cuda") else 0,
        )  # fmt: skip
        self._skipped_records = self.stream.skipped
        self.validate, self.sample = validate, sample
        self.out = Path(out) if out is not None else None
        self.identity = dict(state or {})
        self.pad_token_id = pad_token_id
        self._shards: Shards | None = None
        if config.shard and self.processes.world > 1:
            if isinstance(optimizer, Optimizer):
                raise ConfigError(
                    "with shard, the optimizer must be given as a function "
                    "of the model, because it holds the parts and not the "
                    "whole parameters"
                )
            self._shards = Shards(
                self.model, self.device, self.precision.dtype
            )
            accelerate(self._shards.module, **faster)
        held = self._shards.module if self._shards else model
        if optimizer is None:
            self.optimizer = build_optimizer(
                held, config, self.precision.dtype
            )
        else:
            if not isinstance(optimizer, Optimizer):
                optimizer = optimizer(held)
            self.optimizer = optimizer
            self.identity["own_optimizer"] = type(self.optimizer).__name__
        if schedule is not None:
            self.identity["own_schedule"] = getattr(
                schedule, "__name__", type(schedule).__name__
            )
        self.schedule = schedule
        self.callbacks = list(callbacks)
        self.scaler = self.precision.scaler()
        self.step = self.tokens = self.supervised_tokens = 0
        self.skipped_steps = self._skipped_in_a_row = 0
        self.seconds = self.waited = 0.0
        self.stopped = ""
        self.history: list[Record] = []
        self._saved_step = -1
        loud = progress and self.processes.is_main
        self.progress = Progress(
            title, config.steps, sys.stdout if loud else None
        )
        world = self.processes.world
        if config.batch_size % world:
            raise ConfigError(
                f"batch_size {config.batch_size} cannot be shared evenly by "
                f"{world} processes"
            )

    def _use_threads(self, count: int) -> None:
        count = self.processes.broadcast(count)
        if count != torch.get_num_threads():
            torch.set_num_threads(count)

    def fit(self) -> list[Record]:
        """Train from the current step to the last one.

        A final checkpoint is written at the end, from which the run can be
        continued with more steps.

        Returns
        -------
        list of dict
            The log.

        Raises
        ------
        TrainingError
            If the loss, a gradient or a weight is not a finite number; see
            ``TrainConfig.on_nonfinite``.
        OutputError
            If a checkpoint or the log cannot be written.
        """
        self.model.train()
        module = self._distributed()
        last = self.config.steps
        for callback in self.callbacks:
            callback.on_train_begin(self)
        try:
            while self.step < last and not self.stopped:
                started = time.perf_counter()
                with float32_products(self.config.tf32):
                    record = self.train_step(module)
                self.seconds += time.perf_counter() - started
                self._finish_step(record)
                every = self.config.save_every
                due = every and self.step % every == 0
                if due and self.step < last and not self.stopped:
                    self.save()
        finally:
            self.progress.close()
            self._batches.close()
        if self._shards:
            self._shards.fill()
        for callback in self.callbacks:
            callback.on_train_end(self)
        if self.step != self._saved_step:
            self._require_finite()
            self.save()
        self.model.eval()
        return self.history

    def stop(self, reason: str) -> None:
        """End the run after this step, as if it were the last.

        Parameters
        ----------
        reason : str
            Shown to the user, and recorded in the log and the metadata.
        """
        self.stopped = reason or "stopped"

    def train_step(self, module: nn.Module) -> Record:
        """Take one optimizer step over one global batch.

        Each token of the global batch has equal weight, however it was split
        into micro-batches and processes: every partial loss is a sum over
        its tokens, divided by the number of tokens in the whole batch.

        Returns
        -------
        dict
            ``step``, ``loss`` (nats per token), ``lr`` (the base rate), the
            rate of each group, ``gradient_norm`` and with a scaler ``scale``
            and ``skipped``. A number that is not finite is None.

        Raises
        ------
        TrainingError
            If the loss or the norm is not finite, before the optimizer
            step; see ``TrainConfig.on_nonfinite``.
        """
        started = time.perf_counter()
        batch = self._batches.next()
        self.waited += time.perf_counter() - started
        self._skipped_records = batch.skipped
        items = batch.labels
        rates = self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(batch.micro_batches, 1):
            # Processes exchange gradients once a step, not once a pass.
            sync = number == len(batch.micro_batches)
            with self._exchange(module, sync), self.precision.autocast():
                out = module(
                    **send(micro, self.device),
                    num_items_in_batch=items,
                    **self._options,
                )
            with self._exchange(module, sync):
                # DDP averages over processes; the loss is a sum over them.
                scaled = out.loss * self.processes.world
                self.scaler.scale(scaled).backward()
            total += out.loss.detach()
        if self.processes.world > 1:
            dist.all_reduce(total)
        # Gradients are clipped at their true size, so they are unscaled
        # first.
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(module, self.config.max_grad_norm)
        # This is the only synchronisation with the device in a step: both
        # numbers are transferred together.
        loss, size = torch.stack([total, norm.to(total)]).tolist()
        finite = self._may_step(loss, size, batch)
        record: Record = {
            "step": self.step + 1,
            "loss": loss if math.isfinite(loss) else None,
            **rates,
            "gradient_norm": size if math.isfinite(size) else None,
        }
        if self.scaler.is_enabled():
            record["scale"] = self.scaler.get_scale()
        if finite:
            self.scaler.step(self.optimizer)
        if self.scaler.is_enabled() or self.config.on_nonfinite == "skip":
            record["skipped"] = not finite
            record["skipped_steps"] = self.skipped_steps
        # The scale is halved after an overflow, and doubled after many
        # steps without one.
        self.scaler.update()
        self.step += 1
        self.tokens += batch.tokens
        self.supervised_tokens += items
        return record

    def _set_rates(self) -> dict[str, float]:
        """Give each group of parameters the learning rate of this step."""
        if self.schedule is None:
            scale = learning_rate_scale(self.step, self.config)
        else:
            scale = self.schedule(self.step)
        named = set_learning_rates(self.optimizer, scale)
        base = self.config.lr
        if "own_optimizer" in self.identity:
            base = self.optimizer.param_groups[0]["initial_lr"]
        return {"lr": base * scale, **named}

    def _may_step(self, loss: float, norm: float, batch: Batch) -> bool:
        """Whether the optimizer may step; raises if the run must end."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            return True
        # The scaler finds its scale by overflows of scaled gradients, so
        # these are no error. A non-finite loss has another cause.
        overflow = self.scaler.is_enabled() and math.isfinite(loss)
        if not overflow and self.config.on_nonfinite == "stop":
            what = "the gradient norm" if math.isfinite(loss) else "the loss"
            value = norm if math.isfinite(loss) else loss
            raise TrainingError(
                f"step {self.step + 1}: {what} is {value}, so the optimizer "
                f"was not moved. The batch was {self._place(batch)}. "
                f"{self._advice()}"
            )
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self.config.max_skipped:
            scale = (
                f", and the loss scale has fallen to "
                f"{self.scaler.get_scale():g}" if overflow else ""
            )  # fmt: skip
            raise TrainingError(
                f"step {self.step + 1}: {self._skipped_in_a_row} steps in a "
                "row were skipped, because the loss or the gradients were "
                f"not finite{scale}. The last batch was "
                f"{self._place(batch)}. {self._advice()}"
            )
        return False

    def _place(self, batch: Batch) -> str:
        """Describe which part of the data this step's batch comes from."""
        size = self.config.batch_size
        first = self.step * size
        place = f"rows {first} to {first + size - 1} of the data stream"
        oldest, drawn = batch.oldest, batch.drawn
        if isinstance(oldest, int) and isinstance(drawn, int):
            return (
                f"{place}, made from records {oldest} to {drawn - 1} in the "
                "order they are drawn"
            )
        if oldest is not None and drawn is not None:
            return f"{place}, made from records {oldest} up to {drawn}"
        return place

    def _advice(self) -> str:
        saved = "Nothing was saved yet"
        sound = None if self.out is None else last_sound(self.out)
        if sound is not None:
            saved = f"{sound} is the newest checkpoint, and it is sound"
        return (
            f"{saved}. Lower the learning rate, clip the gradients, use "
            f"another dtype (now {self.precision.dtype}: "
            f'{self.precision.reason}), or set on_nonfinite="skip" to leave '
            "such batches out"
        )

    def _require_finite(self) -> None:
        """Raise an error if the last update made any weight non-finite."""
        state = self.optimizer.state_dict()
        mine = all_finite((self._held(), state["state"]))
        if not self.processes.any(not mine):
            return
        raise TrainingError(
            f"step {self.step}: its update has made weights, or the "
            "optimizer's state, infinite or not a number. "
            f"{self._advice()}"
        )

    def _micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Split this process's share of a global batch into micro-batches."""
        mine = rows[self.processes.rank :: self.processes.world]
        size = self.config.micro_batch_size or len(mine)
        return [mine[at : at + size] for at in range(0, len(mine), size)]

    def _prepare(
        self, rows: list[Row]
    ) -> tuple[list[dict[str, Tensor]], int, int]:
        """Pad this process's rows; count the tokens of all."""
        # A compiled graph is for one shape.
        length = self.config.seq_len if self.config.compile else 0
        batches = [
            collate(micro, self.pad_token_id, length=length)
            for micro in self._micro_batches(rows)
        ]
        if self.device.startswith("cuda"):
            batches = [pin(batch) for batch in batches]
        return batches, count_tokens(rows), count_labels(rows)

    def _distributed(self) -> nn.Module:
        if self._shards:
            self._shards.release()
            return self._shards.module.train()
        if self.processes.world == 1:
            return self.model
        return DistributedDataParallel(self.model)

    @contextlib.contextmanager
    def _exchange(self, module: nn.Module, sync: bool) -> Iterator[None]:
        if isinstance(module, DistributedDataParallel) and not sync:
            with module.no_sync():
                yield
        else:
            if self._shards:
                self._shards.exchange(sync)
            yield

    # --- the log ---

    def _finish_step(self, record: Record) -> None:
        """Run callbacks and validation, and write the log, after a step."""
        config = self.config
        record |= {
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "skipped_records": self._skipped_records,
        }
        for callback in self.callbacks:
            callback.on_step_end(self, record)
        self._agree_on_stopping()

        def due(every: int) -> bool:
            last = self.step == config.steps or bool(self.stopped)
            return last or bool(every and self.step % every == 0)

        checks = [
            check
            for check, every in (
                (self.validate, config.validate_every),
                (self.sample, config.sample_every),
            )
            if check is not None and due(every)
        ]
        if checks:
            record |= self._run_checks(checks)
        if self.validate in checks:
            for callback in self.callbacks:
                callback.on_validation_end(self, record)
            self._agree_on_stopping()
        if self.stopped:
            record["stopped"] = self.stopped
        if due(config.log_every) or checks or self.step == 1:
            self.history.append(record)
            self._append(record)
        self.progress.show(record, last=due(0))
        if self.stopped:
            self.progress.say(
                f"stopped early, at step {self.step} of {config.steps}: "
                f"{self.stopped}"
            )

    def _run_checks(self, checks: Sequence[Check]) -> Record:
        """Run checks in the main process; all processes get the result."""

        def run() -> Record:
            found: Record = {}
            self.model.eval()
            for check in checks:
                found |= check(self.model)
            self.model.train()
            return found

        if self._shards is None:
            return self.processes.once(run)
        with self._shards.whole(keep=self.processes.is_main):
            return self.processes.once(run)

    def _agree_on_stopping(self) -> None:
        """Stop all processes if one stops, since the others would hang."""
        if self.processes.any(bool(self.stopped)) and not self.stopped:
            self.stopped = "another process has stopped"

    def _append(self, record: Record) -> None:
        if self.out is None or not self.processes.is_main:
            return
        path = self.out / LOG_FILE
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    # --- checkpoints ---

    def learned(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name; tied ones only once.

        If they are sharded, all processes must call this together, and each
        gets the whole of them.
        """
        return {n: gathered(t) for n, t in self._held().items()}

    def _held(self) -> dict[str, Tensor]:
        """The trainable parameters, or this process's parts of them."""
        held = self._shards.module if self._shards else self.model
        return {
            name: parameter.detach()
            for name, parameter in held.named_parameters()
            if parameter.requires_grad
        }

    def runtime(self) -> Record:
        """Return what results depend on, to the bit, besides the settings.

        Returns
        -------
        dict
            ``device``, ``device_name``, ``dtype``, ``threads``,
            ``micro_batch_size``, ``compile``, ``tf32``, ``processes``,
            ``shard`` and ``torch``.
        """
        device = detect_device(self.precision.device)
        return {
            "device": device.type,
            "device_name": device.name,
            "dtype": self.precision.dtype,
            "threads": torch.get_num_threads(),
            "micro_batch_size": self.config.micro_batch_size,
            "compile": self.config.compile,
            "tf32": self.config.tf32,
            "processes": self.processes.world,
            "shard": self._shards is not None,
            "torch": torch.__version__,
        }

    def metadata(self) -> Record:
        """Return the metadata of a finished run."""
        found: Record = {
            "seed": self.config.seed,
            "steps": self.step,
            "precision": self.precision.dtype,
            "runtime": self.runtime(),
            "train": self.config.to_dict(),
        }
        if self.skipped_steps:
            found["skipped_steps"] = self.skipped_steps
        if self.stopped:
            found["stopped"] = self.stopped
        return found

    def save(self) -> Path | None:
        """Write a checkpoint from which this run continues to the bit.

        The previous checkpoint is kept until the next is written, so that
        there is always one to fall back to.

        Returns
        -------
        Path or None
            Its folder; None if the trainer has no ``out``.

        Raises
        ------
        TrainingError
            If a weight is not finite; nothing is written then.
        OutputError
            If it cannot be written.
        """
        if self.out is None:
            return None
        out = self.out
        self._require_finite()
        # Each process has its own dropout.
        random_states = self.processes.gather(self._random_state())
        optimizer, weights = self.optimizer.state_dict(), None
        if self._shards:
            weights = self._write_shards(out, optimizer)
        folder = self.processes.once(lambda: save_checkpoint(
            out,
            self.step,
            weights
            or {n: t.cpu().clone() for n, t in self._held().items()},
            {
                "optimizer": optimizer,
                "scaler": self.scaler.state_dict(),
                "random": random_states,
            },
            {
                "data": self._batches.position(),
                "tokens": self.tokens,
                "supervised_tokens": self.supervised_tokens,
                "seconds": self.seconds,
                "skipped_steps": self.skipped_steps,
                "skipped_in_a_row": self._skipped_in_a_row,
                "config": self.config.to_dict(),
                "identity": self.identity,
                "runtime": self.runtime(),
                "callbacks": [
                    [type(callback).__name__, callback.state_dict()]
                    for callback in self.callbacks
                ],
            },
        ))  # fmt: skip
        self._saved_step = self.step
        for callback in self.callbacks:
            callback.on_save(self, folder)
        return folder

    def _write_shards(self, out: Path, optimizer: Record) -> Path:
        """Write what is sharded, and take it out of the optimizer's state."""
        partial = self.processes.once(lambda: begin_shards(out, self.step))
        tensors = {f"weights.{n}": t for n, t in self._held().items()}
        rest: dict[int, Record] = {}
        for number, values in optimizer["state"].items():
            rest[number] = {}
            for key, value in values.items():
                if is_sharded(value):
                    tensors[f"optimizer.{number}.{key}"] = value
                else:
                    rest[number][key] = value
        optimizer["state"] = rest
        write_tensors(partial, tensors)
        return partial

    def _random_state(self) -> dict[str, Tensor]:
        """State of the random generators that this process uses."""
        states = {"cpu": torch.get_rng_state()}
        kind = torch.device(self.device).type
        if kind == "cuda":
            states[kind] = torch.cuda.get_rng_state(self.device)
        elif kind == "mps":
            states[kind] = torch.mps.get_rng_state()
        return states

    def _set_random_state(self, saved: list[dict[str, Tensor]]) -> None:
        rank = self.processes.rank
        if rank >= len(saved):
            # A process that did not exist before. Its dropout should not be a
            # copy of another's.
            torch.manual_seed(hash((self.config.seed, self.step, rank)))
            return
        torch.set_rng_state(saved[rank]["cpu"])
        kind = torch.device(self.device).type
        if kind not in saved[rank]:
            return
        if kind == "cuda":
            torch.cuda.set_rng_state(saved[rank][kind], self.device)
        elif kind == "mps":
            torch.mps.set_rng_state(saved[rank][kind])

    def resume(self, folder: str | Path) -> None:
        """Continue from a checkpoint.

        The run must have the settings it started with, except for those that
        do not affect what is computed. It may be given more steps. The
        learning rate then follows the schedule of the longer run from here
        on, although the first steps followed that of the shorter one. With
        ``dtype="auto"`` and without ``threads`` it takes the number format
        and the threads that the run started with.

        Parameters
        ----------
        folder : path
            See `minimind_core.checkpoint.checkpoints`.

        Raises
        ------
        CheckpointError
            If it is damaged, has another format, or belongs to another run:
            each setting that differs is named.
        DataError
            If the data is not what it was.

        Warns
        -----
        UserWarning
            If the result cannot equal that of an uninterrupted run to the
            bit, because it continues in another number format, or on another
            device, number of threads or of processes.
        """
        folder = Path(folder)
        own = self._held()
        order = [
            p for group in self.optimizer.param_groups
            for p in group["params"]
        ]  # fmt: skip

        def make(
            name: str, shape: tuple[int, ...], dtype: torch.dtype
        ) -> Tensor:
            """Read into a part like that of the parameter it belongs to."""
            part, _, rest = name.partition(".")
            number = rest.partition(".")[0]
            owner = own.get(rest) if part == "weights" else (
                order[int(number)] if int(number) < len(order) else None
            )  # fmt: skip
            if owner is None or tuple(owner.shape) != shape:
                return torch.empty(shape, dtype=dtype)
            return torch.empty_like(owner, dtype=dtype)

        weights, training, state = load_checkpoint(folder, make)
        self._require_same_run(folder, state)
        if {n: t.shape for n, t in own.items()} != {
            n: t.shape for n, t in weights.items()
        }:
            raise CheckpointError(
                f"{folder}: its parameters are not this model's"
            )
        self._adopt(state["runtime"])
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(_part(weights[name], parameter))
        for number, values in training["optimizer"]["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    values[key] = _part(value, order[number])
        for group, saved in zip(
            self.optimizer.param_groups,
            training["optimizer"]["param_groups"],
            strict=False,
        ):
            # Whether a fused kernel runs is up to the device, not the run.
            if "fused" in saved:
                saved["fused"] = group["fused"]
        self.optimizer.load_state_dict(training["optimizer"])
        # Empty if the run needed no scaler so far; then a new one is used.
        if training["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(training["scaler"])
        self.stream.load_state_dict(state["data"])
        self._batches.forget()
        self._skipped_records = self.stream.skipped
        for name in ("step", "tokens", "supervised_tokens", "seconds",
                     "skipped_steps"):  # fmt: skip
            setattr(self, name, state[name])
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._saved_step = self.step
        for callback, (name, saved) in zip(
            self.callbacks, state["callbacks"], strict=False
        ):
            if type(callback).__name__ == name:
                callback.load_state_dict(saved)
        self._set_random_state(training["random"])
        self._rewind_log()

    def _require_same_run(self, folder: Path, state: Record) -> None:
        ours = {**self.config.to_dict(), **self.identity}
        theirs = {**state["config"], **state["identity"]}
        longer = ours["steps"] > theirs["steps"]
        free = NO_EFFECT | ROUNDING | ({"steps"} if longer else set())
        different = [
            f"{name} was {theirs.get(name)!r}, now {ours.get(name)!r}"
            for name in sorted({*ours, *theirs} - free)
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            raise CheckpointError(
                f"{folder}: belongs to a run with other settings "
                f"({'; '.join(different)}); resume with the same, or start "
                "another --out"
            )
        if longer and self.schedule is None:
            self.progress.say(
                f"the run was of {theirs['steps']} steps and is now of "
                f"{ours['steps']}: from step {state['step'] + 1} on the "
                "learning rate follows the schedule of the longer run"
            )

    def _adopt(self, runtime: Record) -> None:
        """Adopt the run's dtype and threads, unless others were requested."""
        # Older checkpoints do not say that they were not sharded.
        runtime = {"shard": False, **runtime}
        dtype = runtime["dtype"]
        if self.config.dtype == "auto" and dtype != self.precision.dtype:
            with warnings.catch_warnings():
                # If the device does not support it, the warning below says
                # so.
                warnings.simplefilter("ignore", UserWarning)
                precision = resolve(
                    self.precision.device, dtype,
                    origin="as recorded by the run",
                )  # fmt: skip
            self.precision = self.processes.broadcast(precision)
            if self._shards and self.precision.dtype != self._shards.dtype:
                raise CheckpointError(
                    f"the run computed in {dtype}, and the parts were made "
                    f"for {self._shards.dtype}; resume with --dtype {dtype}"
                )
            self.scaler = self.precision.scaler()
        same = runtime["processes"] == self.processes.world
        if self.config.threads is None and same:
            self._use_threads(runtime["threads"])
        ours = self.runtime()
        different = [
            f"{name} was {runtime.get(name)!r}, now {value!r}"
            for name, value in ours.items()
            if runtime.get(name) != value
        ]
        if different and self.processes.is_main:
            warnings.warn(
                "the resumed run will not equal an uninterrupted one to the "
                f"bit: {'; '.join(different)}",
                UserWarning,
                stacklevel=3,
            )

    def _rewind_log(self) -> None:
        """Remove the log records after the checkpoint."""
        assert self.out is not None
        path = self.out / LOG_FILE
        self.history = [
            r for r in read_log(self.out) if r["step"] <= self.step
        ]
        if self.processes.is_main:
            lines = [json.dumps(r, ensure_ascii=False) for r in self.history]
            text = "".join(line + "\n" for line in lines)
            with atomic_file(path) as partial:
                partial.write_text(text, encoding="utf-8", newline="\n")
