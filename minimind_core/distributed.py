"""The processes that torchrun starts, and the device of each one.

    torchrun --nproc-per-node 2 -m minimind_core pretrain --out runs/p

Without torchrun there is one process, and everything here does nothing.
What every process must agree on is taken from the main one (`broadcast`),
and what must happen once is done by the main one while the others wait
(`run_once`).
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist

from minimind_core.errors import ConfigError, MiniMindError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started.

    Attributes
    ----------
    rank : int
        From 0.
    world : int
        How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come to this point."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU, so through gloo

    def broadcast(self, value: T) -> T:
        """The main process's value; the others' are dropped.

        Parameters
        ----------
        value
            Whatever pickle can write.
        """
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in every one of them, by rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def once(self, work: Callable[[], T]) -> T:
        """Do something in the main process while the others wait.

        See `run_once`, which does the same without a group at hand.
        """
        if self.world == 1:
            return work()
        # Nobody begins before all are here: what one process has checked on
        # the disk must not be changed by another that is further ahead.
        self.barrier()
        result: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = work()
            except MiniMindError as raised:
                error = raised
            except Exception as raised:
                self.broadcast((None, RuntimeError(f"process 0: {raised}")))
                raise
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.world == 1:
            return flag
        total = torch.tensor(float(flag))
        dist.all_reduce(total)
        return bool(total)


def _world() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str = "cpu") -> Processes:
    """Join the group that torchrun has set up, if it has.

    The group is left when the process ends, also when it ends by an error.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cuda:N`` where this process is going to compute on a
        GPU. Tensors there go through NCCL, all others through gloo.

    Returns
    -------
    Processes
    """
    if _world() < 2:
        return Processes()
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
        atexit.register(leave_processes)
    return Processes(dist.get_rank(), dist.get_world_size())


def leave_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: ``cuda`` becomes ``cuda:LOCAL_RANK``.

    Parameters
    ----------
    device : str
        As the user gave it.

    Raises
    ------
    ConfigError
        If several processes would have to share one GPU.
    """
    if _world() < 2:
        return device
    kind, _, number = device.partition(":")
    if kind == "mps":
        raise ConfigError(
            "device 'mps' is one GPU, which several processes cannot share; "
            "start without torchrun, or use --device cpu"
        )
    if kind != "cuda":
        return device
    if number:
        raise ConfigError(
            f"device {device!r} would put all {_world()} processes of "
            "torchrun on one GPU; use --device cuda, which gives each its "
            "own, and CUDA_VISIBLE_DEVICES to say which"
        )
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"torchrun has started process {local + 1} on this machine, "
            f"which has {count} GPUs; set --nproc-per-node to at most {count}"
        )
    return f"cuda:{local}"


def run_once(work: Callable[[], T]) -> T:
    """Do something in the main process while the others wait.

    Parameters
    ----------
    work : callable
        Without arguments. Under torchrun it must not train, because the
        other processes do not take part.

    Returns
    -------
    Its result, in every process. Pickle must be able to write it.

    Raises
    ------
    MiniMindError
        What `work` raised, in every process, so that none waits for ever.
    RuntimeError
        In the others, if `work` raised anything else.

    Examples
    --------
    >>> run_once(lambda: export_hf("runs/sft", "runs/hf"))
    """
    return join_processes().once(work)


def in_main_process(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function that writes a folder work under torchrun.

    A decorator: the function runs in the main process while the others
    wait, and returns, or raises, the same in all; see `run_once`.
    """

    @functools.wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_once(lambda: function(*args, **kwargs))

    return once
