"""Callbacks: your own code at fixed points of a training run.

    from minimind_core.callbacks import Callback, EarlyStopping

    class Norms(Callback):
        def on_step_end(self, trainer, record):
            record["largest"] = max(
                float(p.abs().max()) for p in trainer.model.parameters())

    Trainer(model, stream, config, callbacks=[Norms(), EarlyStopping()])

Values that a callback adds to the record appear in the log. A callback can
end the run with ``trainer.stop("the reason")``; the result is saved as at the
end of a complete run.
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
    """The part of the `Trainer` that callbacks may rely on."""

    model: nn.Module
    config: TrainConfig
    step: int
    history: list[Record]

    def stop(self, reason: str) -> None:
        """End the run after this step."""


class Callback:
    """Base class of callbacks; every method does nothing by default.

    Under torchrun every process calls every method, with the same records.
    """

    def on_train_begin(self, trainer: Training) -> None:
        """Called before the first step, also after resuming."""

    def on_step_end(self, trainer: Training, record: Record) -> None:
        """Called after each optimizer step, before validation and logging."""

    def on_validation_end(self, trainer: Training, record: Record) -> None:
        """Called after each validation, with its results in the record."""

    def on_save(self, trainer: Training, folder: Path) -> None:
        """Called after a checkpoint has been written to `folder`."""

    def on_train_end(self, trainer: Training) -> None:
        """Called after the last step, before the result is written."""

    def state_dict(self) -> Record:
        """Return the state that a resumed run needs, as JSON values."""
        return {}

    def load_state_dict(self, state: Record) -> None:
        """Restore a state that `state_dict` returned."""


class EarlyStopping(Callback):
    """End the run when a quantity has stopped improving.

    Parameters
    ----------
    metric : str
        A quantity that validation logs.
    patience : int
        Number of validations without improvement before the run ends.
    min_delta : float
        Smallest change that counts as an improvement.
    mode : {"min", "max"}
        Whether smaller or larger is better.

    Attributes
    ----------
    best : float
        The best value so far.
    best_step : int
        The step at which it was reached.

    Raises
    ------
    ConfigError
        For an invalid mode or patience; during training, if validation does
        not log the quantity.
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
        """Compare the metric with the best value so far."""
        value = record.get(self.metric)
        if value is None:
            numbers = [n for n, v in record.items() if isinstance(v, float)]
            raise ConfigError(
                f"EarlyStopping waits for {self.metric!r}, which validation "
                f"did not give; the record has {', '.join(numbers)}"
            )
        gain = self.best - value if self.mode == "min" else value - self.best
        # NaN is never an improvement.
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
        """Return the best value and the validations since."""
        found = self.best_step > 0
        return {
            "best": self.best if found else None,
            "best_step": self.best_step,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Record) -> None:
        """Restore the best value."""
        if state["best"] is not None:
            self.best = state["best"]
        self.best_step, self.waited = state["best_step"], state["waited"]
