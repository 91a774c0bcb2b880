"""Code of one's own in a run: when it is called, and how it ends one."""

import math

import pytest
import torch
from test_train import BASE, fresh, go_on, kill, same_weights, trainer

from minimind_core.callbacks import Callback, EarlyStopping
from minimind_core.checkpoint import checkpoints
from minimind_core.errors import ConfigError
from minimind_core.run import read_log


class Notes(Callback):
    """What was called, in order."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, trainer):
        self.calls.append(("begin", trainer.step))

    def on_step_end(self, trainer, record):
        self.calls.append(("step", record["step"]))
        record["mine"] = trainer.step * 10

    def on_validation_end(self, trainer, record):
        self.calls.append(("validation", record["validation_loss"]))

    def on_save(self, trainer, folder):
        assert (folder / "state.json").exists()
        self.calls.append(("save", folder.name))

    def on_train_end(self, trainer):
        self.calls.append(("end", trainer.step))


def validate(values):
    """A validation that finds these losses, one after another."""
    found = iter(values)
    return lambda model: {"validation_loss": next(found)}


def test_each_place_is_called(tmp_path):
    notes = Notes()
    config = BASE.replace(steps=3, save_every=2, validate_every=2)
    run = trainer(
        None, config, out=tmp_path, callbacks=[notes],
        validate=validate([5.0, 4.0]),
    )  # fmt: skip
    run.fit()
    assert notes.calls == [
        ("begin", 0), ("step", 1), ("step", 2), ("validation", 5.0),
        ("save", "step_00000002"), ("step", 3), ("validation", 4.0),
        ("end", 3), ("save", "step_00000003"),
    ]  # fmt: skip
    assert [r["mine"] for r in read_log(tmp_path)] == [10, 20, 30]


def test_the_base_class_does_nothing():
    plain, called = trainer(), trainer(callbacks=[Callback()])
    plain.fit()
    called.fit()
    assert same_weights(plain, called)


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step_end(self, trainer, record):
        if trainer.step == self.at:
            trainer.stop("enough")


def test_a_run_that_is_stopped_ends_like_any_other(tmp_path, capsys):
    config = BASE.replace(validate_every=5)
    run = trainer(
        None, config, out=tmp_path, callbacks=[StopAt(3)], progress=True,
        validate=validate([5.0]),
    )  # fmt: skip
    history = run.fit()
    assert (run.step, run.stopped) == (3, "enough")
    assert "stopped early, at step 3 of 6: enough" in capsys.readouterr().out
    # Validated, logged and saved, as at the end of a complete run.
    assert history[-1]["step"] == 3
    assert history[-1]["validation_loss"] == 5.0
    assert history[-1]["stopped"] == "enough"
    assert run.metadata()["stopped"] == "enough"
    assert run.metadata()["steps"] == 3
    assert [c.name for c in checkpoints(tmp_path)] == ["step_00000003"]
    assert not run.model.training
    # A run that comes to its end does not say so.
    assert "stopped" not in trainer().metadata()


LOSSES = [5.0, 4.0, 4.5, 4.1, 3.0, 3.2, 2.995, 3.4, 1.0]


@pytest.mark.parametrize(
    ("options", "losses", "stops_at", "best"),
    [
        ({"patience": 3}, LOSSES, 9, 1.0),
        ({"patience": 2}, LOSSES, 4, 4.0),
        ({"patience": 3, "min_delta": 0.01}, LOSSES, 8, 3.0),
        ({"patience": 2, "mode": "max"}, LOSSES, 3, 5.0),
        ({"patience": 2}, [5.0, math.nan, math.nan, 4.0], 3, 5.0),
    ],
)
def test_early_stopping(options, losses, stops_at, best):
    early = EarlyStopping(**options)
    config = BASE.replace(steps=len(losses), validate_every=1)
    run = trainer(
        None, config, callbacks=[early], validate=validate(losses)
    )
    run.fit()
    assert (run.step, early.best) == (stops_at, best)
    assert bool(run.stopped) == (stops_at < len(losses))
    if run.stopped:
        assert f"best at step {early.best_step}" in run.stopped


def test_early_stopping_remembers_when_resumed(tmp_path):
    config = BASE.replace(steps=9, validate_every=1, save_every=3)
    losses = [5.0, 4.0, 4.5, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6]
    whole = trainer(
        None, config, validate=validate(losses),
        callbacks=[EarlyStopping()],
    )  # fmt: skip
    whole.fit()
    assert whole.step == 5

    class Kill(EarlyStopping):
        def on_step_end(self, trainer, record):
            if trainer.step == 4:
                raise KeyboardInterrupt

    Kill.__name__ = "EarlyStopping"
    with pytest.raises(KeyboardInterrupt):
        trainer(
            None, config, validate=validate(losses), callbacks=[Kill()],
            out=tmp_path,
        ).fit()  # fmt: skip
    resumed = go_on(
        tmp_path, config, validate=validate(losses[3:]),
        callbacks=[EarlyStopping()],
    )  # fmt: skip
    assert resumed.step == 5
    assert resumed.stopped == whole.stopped
    assert same_weights(whole, resumed)


def test_callbacks_may_be_left_out_when_resuming(tmp_path):
    config = BASE.replace(save_every=3)
    kill(tmp_path, config, 4)
    whole = trainer(None, config)
    whole.fit()
    assert same_weights(whole, go_on(tmp_path, config))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "least"}, "min or max"), ({"patience": 0}, "at least 1")],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EarlyStopping(**options)


def test_a_quantity_that_is_not_there_is_told():
    run = trainer(
        None, BASE, callbacks=[EarlyStopping("validation_los")],
        validate=validate([5.0]),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="waits for 'validation_los'") as e:
        run.fit()
    assert "validation_loss" in str(e.value)


def test_a_bare_model_sees_its_callbacks_too():
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer, record):
            seen.append(trainer.model.training)
            assert trainer.config is BASE

    trainer(fresh(), BASE, callbacks=[Look()]).fit()
    assert seen == [True] * BASE.steps
    assert torch.is_grad_enabled()
