"""The processes that torchrun starts, and the device that each one gets.

    torchrun --nproc-per-node 2 -m minimind_core pretrain --out runs/p

Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come to this point."""
        if self.world > 1:
            dist.barrier()


def join_processes(device: str) -> Processes:
    """Join the group torchrun has set up, if it has.

    Parameters
    ----------
    device : str
        ``cuda`` devices speak through NCCL, all else through gloo.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        return Processes()
    if not dist.is_initialized():
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size())


def local_device(device: str) -> str:
    """The device of this process: ``cuda`` becomes ``cuda:LOCAL_RANK``."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
