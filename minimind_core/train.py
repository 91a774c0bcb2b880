"""One training loop for pretraining, fine-tuning and LoRA.

    trainer = Trainer(model, stream, config, precision=resolve())
    history = trainer.fit()

    torchrun --nproc-per-node 2 -m minimind_core pretrain --out runs/p

The loop takes any module that is called like a Hugging Face causal model:
a `MiniMind`, a `Qwen3ForCausalLM`, a peft model. Started by torchrun it is
distributed; the global batch, and so the result, stays the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimind_core.checkpoint import (
    LOG_FILE,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from minimind_core.config import TrainConfig
from minimind_core.data import (
    Row,
    RowStream,
    collate,
    count_labels,
    next_rows,
)
from minimind_core.distributed import join_processes, local_device
from minimind_core.errors import (
    CheckpointError,
    ConfigError,
    TrainingError,
)
from minimind_core.files import writing
from minimind_core.optim import (
    build_optimizer,
    gradient_norm,
    set_learning_rate,
)
from minimind_core.precision import Precision, resolve
from minimind_core.run import Record, read_log

Check = Callable[[nn.Module], Record]

# Settings that may differ between the two halves of a resumed run, because
# they do not change what is computed.
FREE_TO_CHANGE = {
    "device", "dtype", "log_every", "validate_every", "sample_every",
    "save_every", "micro_batch_size",
}  # fmt: skip


# --- progress --------------------------------------------------------------


@dataclass
class Progress:
    """A line of plain text that says how far training is.

    In a terminal it is rewritten in place; elsewhere a new line appears
    every few seconds.
    """

    title: str
    total: int
    stream: TextIO | None = field(default_factory=lambda: sys.stdout)
    every: float = 10.0
    shown: float = field(default_factory=time.monotonic)

    def show(self, record: Record, *, last: bool = False) -> None:
        """Show a log record, if it is time to."""
        if self.stream is None:
            return
        terminal = self.stream.isatty()
        now = time.monotonic()
        if not last and now - self.shown < (0.2 if terminal else self.every):
            return
        self.shown = now
        step = record["step"]
        done = round(20 * step / self.total)
        bar = "#" * done + "." * (20 - done)
        line = (
            f"{self.title} [{bar}] {step}/{self.total}"
            f"  loss {record['loss']:.3f}"
            f"  {record['tokens_per_second']:,.0f} tokens/s"
            f"  {record['seconds']:.0f} s"
        )
        end = "\n" if last or not terminal else ""
        self.stream.write(("\r\x1b[K" if terminal else "") + line + end)
        self.stream.flush()


# --- the loop --------------------------------------------------------------


class Trainer:
    """Train a model on a stream of rows.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(input_ids=, labels=, num_items_in_batch=)``; only
        parameters with ``requires_grad`` learn. Trained in place.
    stream : RowStream
    config : TrainConfig
    precision : Precision, optional
        Resolved from the config if not given.
    validate, sample : callable, optional
        Called with the model every so many steps and at the end; what they
        return joins the log.
    out : path, optional
        Where ``log.jsonl`` and checkpoints go; nothing is written without.
    title : str
        Of the progress line.
    progress : bool
    state : dict, optional
        Kept in every checkpoint and compared on resuming (the digest of the
        tokenizer, for one).
    """

    def __init__(
        self,
        model: nn.Module,
        stream: RowStream,
        config: TrainConfig,
        *,
        precision: Precision | None = None,
        validate: Check | None = None,
        sample: Check | None = None,
        out: str | Path | None = None,
        title: str = "training",
        progress: bool = True,
        state: Record | None = None,
        pad_token_id: int = 0,
    ) -> None:
        self.config = config
        self.precision = precision or resolve(config.device, config.dtype)
        self.device = local_device(self.precision.device)
        self.processes = join_processes(self.device)
        self.model = model.to(self.device)
        self.stream = stream
        self.validate, self.sample = validate, sample
        self.out = Path(out) if out is not None else None
        self.identity = state or {}
        self.pad_token_id = pad_token_id
        self.optimizer = build_optimizer(model, config)
        self.scaler = self.precision.scaler()
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.history: list[Record] = []
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

    def fit(self) -> list[Record]:
        """Train from the current step to the last.

        Returns
        -------
        list of dict
            The log.

        Raises
        ------
        TrainingError
            If the loss is not a number any more.
        OutputError
            If a checkpoint or the log cannot be written.
        """
        self.model.train()
        module = self._distributed()
        last = self.config.steps
        while self.step < last:
            started = time.perf_counter()
            record = self.train_step(module)
            self.seconds += time.perf_counter() - started
            self._check_finite(record)
            self._log(record)
            every = self.config.save_every
            if every and self.step % every == 0 and self.step < last:
                self.save()
        self.model.eval()
        return self.history

    def train_step(self, module: nn.Module) -> Record:
        """One optimizer step over one global batch.

        Each token of the global batch counts the same, however it was split
        into micro-batches and processes: every partial loss is a sum over
        its tokens, divided by the number of tokens in the whole batch.

        Returns
        -------
        dict
            ``step``, ``loss`` (nats per token), ``lr``,
            ``gradient_norm`` and with a scaler ``scale`` and ``skipped``.
        """
        rows = next_rows(self.stream, self.config.batch_size)
        items = count_labels(rows)
        rate = set_learning_rate(self.optimizer, self.step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        micro_batches = self._micro_batches(rows)
        for number, micro in enumerate(micro_batches, 1):
            batch = collate(micro, self.pad_token_id, self.device)
            # Processes exchange gradients once a step, not once a pass.
            sync = number == len(micro_batches)
            with self._exchange(module, sync), self.precision.autocast():
                out = module(**batch, num_items_in_batch=items)
            with self._exchange(module, sync):
                # DDP averages over processes; the loss is a sum over them.
                scaled = out.loss * self.processes.world
                self.scaler.scale(scaled).backward()
            total += out.loss.detach()
        # Gradients are clipped at their true size, so they are unscaled
        # first; a step with an infinite one is skipped by the scaler.
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model, self.config.max_grad_norm)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.processes.world > 1:
            dist.all_reduce(total)
        self.step += 1
        self.tokens += items
        record: Record = {
            "step": self.step,
            "loss": float(total),
            "lr": rate,
            "gradient_norm": float(norm),
        }
        if self.scaler.is_enabled():
            record["scale"] = before
            record["skipped"] = self.scaler.get_scale() < before
        return record

    def _micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """This process's share of a global batch, in passes."""
        mine = rows[self.processes.rank :: self.processes.world]
        size = self.config.micro_batch_size or len(mine)
        return [mine[at : at + size] for at in range(0, len(mine), size)]

    def _distributed(self) -> nn.Module:
        if self.processes.world == 1:
            return self.model
        return DistributedDataParallel(self.model)

    @contextlib.contextmanager
    def _exchange(self, module: nn.Module, sync: bool) -> Iterator[None]:
        if isinstance(module, DistributedDataParallel) and not sync:
            with module.no_sync():
                yield
        else:
            yield

    def _check_finite(self, record: Record) -> None:
        if math.isfinite(record["loss"]):
            return
        saved = [] if self.out is None else checkpoints(self.out)
        since = f"; {saved[-1]} is the last that was sound" if saved else ""
        raise TrainingError(
            f"step {self.step}: the loss is {record['loss']}{since}. Lower "
            "the learning rate, clip the gradients, or use another dtype "
            f"(now {self.precision.dtype}: {self.precision.reason})"
        )

    # --- the log ---

    def _log(self, record: Record) -> None:
        config, last = self.config, self.step == self.config.steps

        def due(every: int) -> bool:
            return last or bool(every and self.step % every == 0)

        checks = (
            (self.validate, config.validate_every),
            (self.sample, config.sample_every),
        )
        now = [c for c, every in checks if c is not None and due(every)]
        found: Record = {}
        if now and self.processes.is_main:
            self.model.eval()
            for check in now:
                found |= check(self.model)
            self.model.train()
        if now:
            self.processes.barrier()
        record |= {
            **found,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "skipped_records": self.stream.skipped,
        }
        if due(config.log_every) or found or self.step == 1:
            self.history.append(record)
            self._append(record)
        self.progress.show(record, last=last)

    def _append(self, record: Record) -> None:
        if self.out is None or not self.processes.is_main:
            return
        path = self.out / LOG_FILE
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    # --- checkpoints ---

    def learned(self) -> dict[str, Tensor]:
        """The parameters that learn, by name; a tied one once."""
        return {
            name: parameter.detach()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def save(self) -> None:
        """Write a checkpoint from which this run goes on to the bit."""
        if self.out is not None and self.processes.is_main:
            random_state: Record = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                random_state["cuda"] = torch.cuda.get_rng_state_all()
            save_checkpoint(
                self.out,
                self.step,
                {n: t.cpu().clone() for n, t in self.learned().items()},
                {
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "random": random_state,
                },
                {
                    "data": self.stream.state_dict(),
                    "tokens": self.tokens,
                    "seconds": self.seconds,
                    "config": self.config.to_dict(),
                    "identity": self.identity,
                },
            )
        self.processes.barrier()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        CheckpointError
            If it is damaged, or belongs to another run: each setting that
            differs is named.
        """
        weights, training, state = load_checkpoint(folder)
        self._same_run(folder, state)
        own = self.learned()
        if {n: t.shape for n, t in own.items()} != {
            n: t.shape for n, t in weights.items()
        }:
            raise CheckpointError(
                f"{folder}: its parameters are not this model's"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(training["optimizer"])
        # Empty when the run so far needed no scaler; a new one then starts.
        if training["scaler"]:
            self.scaler.load_state_dict(training["scaler"])
        torch.set_rng_state(training["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in training["random"]:
            torch.cuda.set_rng_state_all(training["random"]["cuda"])
        self.stream.load_state_dict(state["data"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.seconds = state["seconds"]
        self._rewind_log()

    def _same_run(self, folder: Path, state: Record) -> None:
        ours = {**self.config.to_dict(), **self.identity}
        theirs = {**state["config"], **state["identity"]}
        different = [
            f"{name} was {theirs.get(name)!r}, now {ours.get(name)!r}"
            for name in sorted({*ours, *theirs} - FREE_TO_CHANGE)
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            raise CheckpointError(
                f"{folder}: belongs to a run with other settings "
                f"({'; '.join(different)}); resume with the same, or start "
                "another --out"
            )

    def _rewind_log(self) -> None:
        """Forget what was logged after the checkpoint."""
        assert self.out is not None
        path = self.out / LOG_FILE
        self.history = [
            r for r in read_log(self.out) if r["step"] <= self.step
        ]
        if self.processes.is_main:
            lines = [json.dumps(r, ensure_ascii=False) for r in self.history]
            partial = path.with_name(f".{path.name}.partial")
            with writing(path):
                text = "".join(line + "\n" for line in lines)
                partial.write_text(text, encoding="utf-8")
                partial.replace(path)
