"""Distributed training: the processes of torchrun and their devices.

    torchrun --nproc-per-node 2 -m minimind_core pretrain --out runs/p

Without torchrun there is one process, and these functions do nothing. Values
on which all processes must agree are taken from the main one (`broadcast`),
and work that must be done only once is done by the main one while the others
wait (`run_once`).
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
    """The group of processes that torchrun started, and this one's rank.

    Attributes
    ----------
    rank : int
        Rank of this process, counted from 0.
    world : int
        Number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the main one, which prints and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU, so through gloo

    def broadcast(self, value: T) -> T:
        """Return the main process's value in every process.

        Parameters
        ----------
        value
            Anything that can be pickled; ignored in the other processes.
        """
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in every process."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def once(self, work: Callable[[], T]) -> T:
        """Run a function in the main process while the others wait.

        See `run_once`, which joins the group first.
        """
        global _alone
        if self.world == 1 or _alone:
            # Alone, or within such a call: the others take no part in it.
            return work()
        # Begin with a barrier: what one process has checked on the disk must
        # not be changed by another one that is further ahead.
        self.barrier()
        result: T | None = None
        error: Exception | None = None
        failed: Exception | None = None
        if self.is_main:
            _alone = True
            try:
                result = work()
            except MiniMindError as raised:
                error = raised
            except Exception as raised:
                failed, error = raised, RuntimeError(f"process 0: {raised}")
            finally:
                _alone = False
        result, error = self.broadcast((result, error))
        if failed is not None:
            raise failed
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        if self.world == 1:
            return flag
        total = torch.tensor(float(flag))
        dist.all_reduce(total)
        return bool(total)


_alone = False
"""Whether the main process is within `Processes.once`. A function that runs
once may call another one that does, which must then not wait."""


def _world() -> int:
    """Return the number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str = "cpu") -> Processes:
    """Join the process group, if torchrun has started this process.

    The group is left when the process exits, also after an error.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cuda:N`` if this process will compute on a GPU. GPU
        tensors are exchanged through NCCL, all others through gloo.

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
    """Return this process's device: ``cuda`` becomes ``cuda:LOCAL_RANK``.

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
    """Run a function in the main process while the others wait.

    Parameters
    ----------
    work : callable
        Without arguments. Under torchrun it must not train, because the
        other processes do not take part.

    Returns
    -------
    The result of `work`, in every process. It must be picklable.

    Raises
    ------
    MiniMindError
        If `work` raised it; in every process, so that none waits forever.
    RuntimeError
        In the other processes, if `work` raised any other exception.

    Examples
    --------
    >>> run_once(lambda: export_hf("runs/sft", "runs/hf"))
    """
    return join_processes().once(work)


def in_main_process(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that writes a folder, so that it runs once.

    Under torchrun the main process runs it while the others wait; all of
    them return, or raise, the same. See `run_once`.
    """

    @functools.wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_once(lambda: function(*args, **kwargs))

    return once
