"""Code of your own at fixed places of a training run.

    from minimind_core.callbacks import Callback, EarlyStopping

    class Norms(Callback):
        def on_step_end(self, trainer, record):
            record["largest"] = max(
                float(p.abs().max()) for p in trainer.model.parameters())

    Trainer(model, stream, config, callbacks=[Norms(), EarlyStopping()])

What a callback puts into the record joins the log. A callback ends the run
with ``trainer.stop("the reason")``; the result is saved as at the end of a
complete run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

from torch import nn

from minimind_core.config import TrainConfig
from minimind_core.errors import ConfigError
from minimind_core.run import Record


class Training(Protocol):
    """What a callback sees of the `Trainer` that calls it."""

    model: nn.Module
    config: TrainConfig
    step: int
    history: list[Record]

    def stop(self, reason: str) -> None:
        """End the run after this step."""


class Callback:
    """Base class; each method does nothing until you write your own.

    Under torchrun every process calls every method, with the same records.
    """

    def on_train_begin(self, trainer: Training) -> None:
        """Before the first step, and before the first after resuming."""

    def on_step_end(self, trainer: Training, record: Record) -> None:
        """After each optimizer step, before it is validated or logged."""

    def on_validation_end(self, trainer: Training, record: Record) -> None:
        """After each validation; the record holds what it found."""

    def on_save(self, trainer: Training, folder: Path) -> None:
        """After a checkpoint has been written to `folder`."""

    def on_train_end(self, trainer: Training) -> None:
        """After the last step, before the result is written."""

    def state_dict(self) -> Record:
        """What a resumed run must be told, ready for JSON."""
        return {}

    def load_state_dict(self, state: Record) -> None:
        """Continue from what `state_dict` returned."""


class EarlyStopping(Callback):
    """End the run when a quantity has stopped improving.

    Parameters
    ----------
    metric : str
        A quantity that validation puts into the log.
    patience : int
        After how many validations in a row without an improvement.
    min_delta : float
        What counts as one.
    mode : {"min", "max"}
        Whether smaller or larger is better.

    Attributes
    ----------
    best : float
        The best value so far.
    best_step : int
        The step it was found at.

    Raises
    ------
    ConfigError
        For a mode or patience that makes no sense; during training, if
        validation does not give the quantity.
    """

    def __init__(
        self,
        metric: str = "validation_loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode must be min or max, not {mode!r}")
        if patience < 1:
            raise ConfigError(f"patience must be at least 1, not {patience}")
        self.metric, self.patience = metric, patience
        self.min_delta, self.mode = min_delta, mode
        self.best = math.inf if mode == "min" else -math.inf
        self.best_step = self.waited = 0

    def on_validation_end(self, trainer: Training, record: Record) -> None:
        """Compare with the best so far."""
        value = record.get(self.metric)
        if value is None:
            numbers = [n for n, v in record.items() if isinstance(v, float)]
            raise ConfigError(
                f"EarlyStopping waits for {self.metric!r}, which validation "
                f"did not give; the record has {', '.join(numbers)}"
            )
        gain = self.best - value if self.mode == "min" else value - self.best
        # A value that is not a number is no improvement.
        if gain > self.min_delta:
            self.best, self.best_step, self.waited = value, trainer.step, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.stop(
                f"{self.metric} has not improved in {self.patience} "
                f"validations; it was best at step {self.best_step}, with "
                f"{self.best:.4g}"
            )

    def state_dict(self) -> Record:
        """The best value and how long ago it was."""
        found = self.best_step > 0
        return {
            "best": self.best if found else None,
            "best_step": self.best_step,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Record) -> None:
        """Continue to compare."""
        if state["best"] is not None:
            self.best = state["best"]
        self.best_step, self.waited = state["best_step"], state["waited"]
