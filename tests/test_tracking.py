"""A log reaches a tracker: all of it, once, and without the training loop."""

import json
import re
import sys
import threading
import time
import types

import accelerate.tracking  # noqa: F401  (before what it imports is faked)
import pytest

from minimind_core import tracking
from minimind_core.checkpoint import LOG_FILE, RUN_FILE, RUN_FORMAT
from minimind_core.tracking import (
    TRACKERS,
    TrackerError,
    main,
    numbers,
    open_tracker,
    send,
)

RECORDS = [
    {"step": 1, "loss": 6.5, "tokens": 100, "skipped": False},
    {"step": 2, "loss": 5.5, "tokens": 200, "validation_loss": 5.6,
     "samples": ["Once"]},
]  # fmt: skip


class Heard:
    """A tracker that remembers what it was told."""

    def __init__(self):
        self.steps, self.values, self.finished = [], [], 0

    def log(self, values, step):
        self.steps.append(step)
        self.values.append(values)

    def finish(self):
        self.finished += 1


def write(run, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run / LOG_FILE).write_text(text, encoding="utf-8")


def end(run, **facts):
    values = {"format": RUN_FORMAT, "finished": True, **facts}
    (run / RUN_FILE).write_text(json.dumps(values))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "pretrain"
    folder.mkdir()
    write(folder, RECORDS)
    return folder


def test_what_of_a_record_is_a_number():
    assert numbers(RECORDS[0]) == {"loss": 6.5, "tokens": 100, "skipped": 0}
    assert numbers(RECORDS[1]) == {
        "loss": 5.5, "tokens": 200, "validation_loss": 5.6,
    }  # fmt: skip


def test_a_log_is_sent_whole_and_the_tracker_finished(run):
    heard = Heard()
    assert send(run, heard) == 2
    assert heard.steps == [1, 2]
    assert heard.values[0]["loss"] == 6.5
    assert heard.finished == 1


def test_no_log_is_an_error_and_the_tracker_is_finished(tmp_path):
    heard = Heard()
    with pytest.raises(TrackerError, match="no log"):
        send(tmp_path, heard)
    assert heard.finished == 1


def test_a_line_that_is_half_written_waits(run):
    with (run / LOG_FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    heard = Heard()
    assert send(run, heard) == 2


def test_a_resumed_run_is_followed_and_each_step_sent_once(tmp_path):
    heard = Heard()
    run = tmp_path / "run"
    done = []
    watcher = threading.Thread(
        target=lambda: done.append(
            send(run, heard, follow=True, every=0.01, patience=20)
        )
    )
    watcher.start()
    run.mkdir()

    def until(step):
        while not heard.steps or heard.steps[-1] < step:
            assert watcher.is_alive()
            time.sleep(0.01)

    def records(last):
        return [{"step": n, "loss": 1.0} for n in range(1, last + 1)]

    write(run, records(4))
    until(4)
    write(run, records(2))  # back at a checkpoint
    write(run, records(3))
    write(run, records(6))
    end(run)
    watcher.join(timeout=10)
    assert heard.steps == [1, 2, 3, 4, 5, 6]
    assert done == [6] and heard.finished == 1


def test_a_dead_run_is_given_up(run):
    heard = Heard()
    assert send(run, heard, follow=True, every=0.01, patience=0.05) == 2
    assert heard.finished == 1


def test_a_tracker_that_fails_is_still_finished(run):
    heard = Heard()

    def broken(values, step):
        raise OSError("no network")

    heard.log = broken
    with pytest.raises(OSError, match="no network"):
        send(run, heard)
    assert heard.finished == 1


# --- accelerate's trackers, with none of their packages installed ----------


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_module_of_the_wandb_kind(run, monkeypatch, name):
    """As wandb 0.31 and trackio 0.43 are called."""
    end(run, stage="pretrain")
    calls = []

    class Run:
        def log(self, metrics, step=None):
            calls.append((step, metrics["loss"]))

        def finish(self):
            calls.append("finish")

    def init(*, project, name, config):
        calls.append((project, name, config["stage"]))
        return Run()

    monkeypatch.setitem(
        sys.modules, name, types.SimpleNamespace(init=init)
    )
    send(run, open_tracker(name, run, project="book"))
    assert calls == [
        ("book", "pretrain", "pretrain"), (1, 6.5), (2, 5.5), "finish",
    ]  # fmt: skip


def test_tensorboard_gets_one_point_for_each_number(run, monkeypatch):
    """As torch's own writer is called, without tensorboard behind it."""
    points = []

    class SummaryWriter:
        def __init__(self, log_dir):
            points.append(log_dir)

        def add_scalar(self, tag, scalar_value, global_step):
            points.append((tag, scalar_value, global_step))

        def flush(self):
            pass

        def close(self):
            points.append("close")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard",
        types.SimpleNamespace(SummaryWriter=SummaryWriter),
    )  # fmt: skip
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    send(run, open_tracker("tensorboard", run))
    assert points[0] == str(run / "tensorboard")
    assert ("loss", 5.5, 2) in points and points[-1] == "close"
    assert len(points) == 2 + 3 + 3


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_there_says_what_to_install(
    run, monkeypatch, name
):
    for module in (name, "torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    with pytest.raises(TrackerError, match=f"pip install {name}"):
        open_tracker(name, run)


def test_an_unknown_tracker_is_named_with_those_there_are(run):
    with pytest.raises(TrackerError, match=r"'paper'.*tensorboard, wandb"):
        open_tracker("paper", run)


def test_the_command_line(run, monkeypatch, capsys):
    heard = Heard()
    monkeypatch.setattr(tracking, "open_tracker", lambda *_, **__: heard)
    assert main([str(run), "--to", "wandb"]) == 0
    assert "sent 2 records" in capsys.readouterr().out
    assert heard.steps == [1, 2]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([str(run), "--to", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert main([str(run / "nowhere"), "--to", "wandb"]) == 2
    assert "no log" in capsys.readouterr().err
    assert not (run / "nowhere").exists()


def test_a_log_is_a_table_for_pandas(run):
    """As the module's docstring says, without a tracker."""
    pandas = pytest.importorskip("pandas")
    line = re.search(r"pandas\.read_json\(.*\)", tracking.__doc__)[0]
    line = line.replace("runs/pretrain", run.as_posix())
    table = eval(line, {"pandas": pandas})
    assert table["step"].tolist() == [1, 2]
    assert table["validation_loss"].isna().tolist() == [True, False]


def test_the_training_loop_knows_no_tracker(root):
    for name in ("train", "recipes", "lora", "run"):
        source = (root / "minimind_core" / f"{name}.py").read_text("utf8")
        assert "tracking" not in source and "wandb" not in source, name
