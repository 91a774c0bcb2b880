"""Train with several processes, and see what each of them sends and holds.

    from minimind_core.book.ranks import run_ranks
    found = run_ranks(2, folder, {"fsdp": {"shard": True}}, steps=4)
    found["fsdp"][0]["sent"]        # by process 0, in one step

torchrun starts this module once for each process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimind_core.callbacks import Callback
from minimind_core.errors import TrainingError
from minimind_core.run import Record
from minimind_core.sharding import is_sharded

MEASURED = 3
"""The step whose collectives are counted. Buffers are settled by then."""

# What a process sends in a ring, in sizes of the largest tensor of the call,
# for n processes (Patarasuk and Yuan, 2009).
_SENT = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: (n - 1) / n,
}


def _kind(name: str) -> str:
    """The collective that an operator of torch is."""
    plain = name.rpartition("::")[2].replace("_", "")
    for kind in _SENT:
        if plain.startswith(kind.replace("_", "")):
            return kind
    return ""


class Collectives(TorchDispatchMode):
    """Count what a process exchanges with the others, within a context.

    Attributes
    ----------
    counts : dict of str to dict
        For each kind of collective, its ``count``, the ``numbers`` in its
        calls together, and the ``bytes`` that this process would send in a
        ring. A library may use another algorithm, which sends more.
    """

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.counts: dict[str, dict[str, float]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and count it if it is a collective."""
        if any(hasattr(kind, "full_tensor") for kind in types):
            # A sharded tensor first becomes plain ones, and then we are
            # asked again.
            return NotImplemented
        if function.namespace in ("c10d", "_c10d_functional"):
            kind = _kind(function.name())
            if kind:
                self._count(kind, args)
        return function(*args, **(kwargs or {}))

    def _count(self, kind: str, args: Any) -> None:
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        largest = max(tensors, key=lambda tensor: tensor.nbytes)
        told = self.counts.setdefault(
            kind, {"count": 0, "numbers": 0, "bytes": 0.0}
        )
        told["count"] += 1
        told["numbers"] += largest.numel()
        told["bytes"] += largest.nbytes * _SENT[kind](self.world)


def _bytes(tensors: Any) -> int:
    """What this process holds of some tensors."""
    return sum(
        (t.to_local() if is_sharded(t) else t).nbytes for t in tensors
    )


class Watch(Callback):
    """Notes what this process sends, holds and waits for.

    Parameters
    ----------
    delays : mapping of str to float
        Seconds by which a process, named by its rank, is slower in each
        step.
    """

    def __init__(self, delays: Mapping[str, float]) -> None:
        self.found: Record = {}
        self.delays = delays
        self.ended: list[float] = []
        self.counter: Collectives | None = None

    def on_step_end(self, trainer: Any, record: Record) -> None:
        """Count one step, from here to here."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.found["sent"] = self.counter.counts
            self.counter = None
        # Before the delay: the others wait for it in their next step.
        self.ended.append(time.perf_counter())
        time.sleep(self.delays.get(str(trainer.processes.rank), 0.0))
        if trainer.step == MEASURED - 1:
            self.counter = Collectives(trainer.processes.world)
            self.counter.__enter__()
        if trainer.step == MEASURED:
            optimizer = trainer.optimizer
            held = [p for g in optimizer.param_groups for p in g["params"]]
            self.found["held"] = {
                "weights": _bytes(held),
                "gradients": _bytes(p.grad for p in held),
                "optimizer": _bytes(
                    value
                    for state in optimizer.state.values()
                    for value in state.values()
                    if isinstance(value, Tensor) and value.ndim
                ),
            }

    def on_train_end(self, trainer: Any) -> None:
        """The time of a step, without the first ones."""
        steps = self.ended[MEASURED:]
        if len(steps) > 1:
            mean = (steps[-1] - steps[0]) / (len(steps) - 1)
            self.found["step_seconds"] = mean


def uneven_end(seconds: float = 1.0) -> str:
    """Let process 0 have one batch more than the others.

    Parameters
    ----------
    seconds : float
        How long it waits for them to add up its gradients. PyTorch's own
        limit is 30 minutes with gloo.

    Returns
    -------
    str
        What becomes of it: the error's first line, or the empty string in
        the other processes, which have ended their loop.
    """
    import datetime

    import torch.distributed as dist

    patience = datetime.timedelta(seconds=seconds)
    group = dist.new_group(backend="gloo", timeout=patience)
    gradient = torch.ones(4)
    batches = 3 if dist.get_rank() == 0 else 2
    said = ""
    try:
        for _ in range(batches):
            dist.all_reduce(gradient, group=group)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    return said


def run_ranks(
    count: int,
    folder: str | Path,
    runs: Mapping[str, Mapping[str, Any]],
    *,
    uneven: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Pretrain with several processes, once for each of some settings.

    Parameters
    ----------
    count : int
        Of processes.
    folder : path
        Will hold a run folder for each of `runs`.
    runs : mapping of str to mapping
        Settings by the name of the run's folder. ``delays`` makes processes
        slower, see `Watch`.
    uneven : bool
        Whether to try `uneven_end` as well.
    **settings
        Of all of them, as `minimind_core.pretrain` takes them.

    Returns
    -------
    dict
        For each run, a list with what each process found: ``sent`` (see
        `Collectives`), ``held`` (bytes) and ``step_seconds``. With `uneven`,
        under this name what each process was told.

    Raises
    ------
    TrainingError
        If a process fails, with what was printed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    order = {
        "settings": {**settings, "tokenizer": str(settings["tokenizer"])},
        "runs": runs, "uneven": uneven,
    }  # fmt: skip
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(count), "-m", "minimind_core.book.ranks",
            str(folder),
        ],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise TrainingError(f"{folder}: {done.stdout}{done.stderr}")
    parts = [
        json.loads((folder / f"rank-{rank}.json").read_text("utf-8"))
        for rank in range(count)
    ]
    return {name: [part[name] for part in parts] for name in parts[0]}


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a launcher and its processes at once, as a power failure does.

    Parameters
    ----------
    process : subprocess.Popen
        Of torchrun, whose processes do not end if it alone is killed.
    """
    import psutil

    launcher = psutil.Process(process.pid)
    children = launcher.children(recursive=True)
    for one in (launcher, *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def main(folder: Path) -> None:
    """Do what `run_ranks` has ordered, as one of its processes."""
    from minimind_core.recipes import pretrain

    order = json.loads((folder / "order.json").read_text("utf-8"))
    found: Record = {}
    for name, changes in order["runs"].items():
        watch = Watch(changes.pop("delays", {}))
        pretrain(
            folder / name, progress=False, callbacks=[watch],
            **{**order["settings"], **changes},
        )  # fmt: skip
        found[name] = watch.found
    if order["uneven"]:
        found["uneven"] = uneven_end()
    rank = os.environ["RANK"]
    path = folder / f"rank-{rank}.json"
    path.write_text(json.dumps(found), encoding="utf-8")


def sharded_bytes(
    parameters: float, devices: int, *, gathered: int = 2, summed: int = 4
) -> float:
    """Bytes that a device sends in a step of FSDP2, in a ring.

    Parameters
    ----------
    parameters : float
    devices : int
    gathered : int
        Bytes of a weight when it is gathered, which is done twice, for the
        forward and for the backward pass; 2 in half precision.
    summed : int
        Bytes of a gradient when it is added up.
    """
    return (2 * gathered + summed) * parameters * (devices - 1) / devices


def tokens_to_hide(
    rate: float, bandwidth: float, *, gathered: int = 2, summed: int = 4
) -> int:
    """Tokens a device must compute in a step so that sending takes as long.

    Both grow with the parameters, so their number cancels out: each takes 6
    operations a token, and ``2 * gathered + summed`` bytes a step.

    Parameters
    ----------
    rate : float
        Operations a second that the device reaches.
    bandwidth : float
        Bytes a second that it sends.
    gathered, summed : int
        See `sharded_bytes`.
    """
    return math.ceil((2 * gathered + summed) * rate / (6 * bandwidth))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
