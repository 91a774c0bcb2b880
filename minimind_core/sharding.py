"""Sharded training: every process keeps a part of each parameter.

    torchrun --nproc-per-node 4 -m minimind_core pretrain --shard --out DIR

PyTorch's `fully_shard` (FSDP2; Zhao et al., arXiv:2304.11277, and Rajbhandari
et al., arXiv:1910.02054, for the idea) splits each parameter, its gradient
and the optimizer's state by rows over the processes. A layer is gathered
before it computes and split again afterwards. So the memory of all three
falls with the number of processes, and more is sent.

A sharded module cannot be saved, exported or evaluated by one process alone.
Therefore `Shards` trains a twin, and the model itself is filled with the
gathered weights whenever somebody wants to look at it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.errors import ConfigError, OutputError

HALF = ("bfloat16", "float16")


# --- one tensor ------------------------------------------------------------


def is_sharded(value: Any) -> bool:
    """Whether a value is a tensor of which this process holds a part."""
    return hasattr(value, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, in every process.

    Parameters
    ----------
    tensor : Tensor
        If it is sharded, all processes must call this together. Any other
        tensor is returned as it is.
    """
    whole: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return whole


def split_like(whole: Tensor, example: Tensor) -> Tensor:
    """Return this process's part of a tensor that every process has.

    Parameters
    ----------
    whole : Tensor
        Equal in all processes; nothing is sent.
    example : Tensor
        A tensor of the same shape. Only if it is sharded, the result is, in
        the same way.
    """
    if not is_sharded(example):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        whole.to(example.device),
        example.device_mesh,  # type: ignore[attr-defined]
        example.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )


# --- a model ---------------------------------------------------------------


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, whatever it is wrapped in."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last == "layers" and isinstance(module, nn.ModuleList):
            return list(module)
    raise ConfigError(
        f"{type(model).__name__} has no list of blocks named 'layers', so it "
        "cannot be sharded; train it without --shard"
    )


class Shards:
    """A model whose weights are spread over the processes.

    Parameters
    ----------
    model : nn.Module
        On the device it will be trained on. From now on it is without
        weights, except within `whole` and after `fill`: its parameters
        remain the same objects, and are empty.
    device : str
        ``cpu``, or this process's GPU.
    dtype : str
        In which the blocks compute. Each process keeps its part in float32.
        With half precision, the parameters of a block are rounded before
        they are sent, which halves what is sent; the embedding, the last
        norm and the output head are sent in float32. Gradients are always
        added up in float32.

    Attributes
    ----------
    model : nn.Module
        As given.
    module : nn.Module
        Its sharded twin, which is trained. Its parameters have the same
        names and order.

    Notes
    -----
    Autocast does the rest of our precision policy, as without sharding: the
    residual stream and the norms compute in float32. The only difference is
    that the gains of a block's norms have been rounded as well.
    """

    def __init__(self, model: nn.Module, device: str, dtype: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
        )

        kind = torch.device(device).type
        world = torch.distributed.get_world_size()
        mesh = init_device_mesh(kind, (world,))
        self.model = model
        self.dtype = dtype
        # The parameters themselves are not copied: what the twin gets is
        # replaced by shards at once.
        shared: dict[int, Any] = {id(p): p for p in model.parameters()}
        self.module = copy.deepcopy(model, shared)
        rounded = getattr(torch, dtype) if dtype in HALF else None
        # Inputs are not cast: the residual stream and the rotary angles
        # would lose float32.
        block, root = (
            MixedPrecisionPolicy(
                param_dtype=kept, reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            )
            for kept in (rounded, None)
        )  # fmt: skip
        for layer in _layers(self.module):
            fully_shard(layer, mesh=mesh, mp_policy=block)
        # The tied embedding and head are in one group, so that they stay
        # one parameter.
        fully_shard(self.module, mesh=mesh, mp_policy=root)
        self.release()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(
            self.model.parameters(), self.module.parameters(), strict=True
        )

    def fill(self, *, keep: bool = True) -> None:
        """Give the model the whole of its weights; all processes take part.

        Parameters
        ----------
        keep : bool
            False in a process that only helps to gather them. It never
            holds more than one whole parameter.
        """
        for own, shard in self._pairs():
            whole = gathered(shard.detach())
            if keep:
                own.data = whole
        for kept, other in zip(
            self.model.buffers(), self.module.buffers(), strict=True
        ):
            kept.copy_(other)

    def release(self) -> None:
        """Take the weights from the model again."""
        for own in self.model.parameters():
            own.data = own.data.new_empty(0)

    @contextlib.contextmanager
    def whole(self, *, keep: bool) -> Iterator[None]:
        """Within this context the model has its weights; see `fill`."""
        self.fill(keep=keep)
        try:
            yield
        finally:
            self.release()

    def exchange(self, sync: bool) -> None:
        """Say whether the next backward pass sends its gradients.

        Otherwise they are added up where they are, each process holding the
        whole gradient until it sends. The parameters are gathered in every
        pass all the same, since they do not stay in memory.
        """
        self.module.set_requires_gradient_sync(sync)  # type: ignore


# --- files -----------------------------------------------------------------


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write sharded tensors; every process writes what it holds.

    Parameters
    ----------
    folder : Path
        Exists, and all processes see it. PyTorch's distributed checkpoint
        puts one safetensors file per process into it, which says for each
        tensor where its part begins.
    tensors : mapping of str to Tensor
        The same names in all processes.

    Raises
    ------
    OutputError
        In every process, if one of them could not write.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        checkpoint.save(
            dict(tensors),
            storage_writer=checkpoint.HuggingFaceStorageWriter(
                str(folder), save_distributed=True
            ),
        )
    except CheckpointException as found:
        # It is no Exception, and every process gets it with the errors of
        # all, so that none waits for one that has failed.
        rank, (error, _) = min(found.failures.items())
        raise OutputError(
            f"{folder}: process {rank} could not write its part of the "
            f"checkpoint ({type(error).__name__}: {error}); check the path "
            "and the space, and whether all processes see the folder"
        ) from found


Make = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


def _empty(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def read_tensors(folder: Path, make: Make = _empty) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, with any number of processes.

    Parameters
    ----------
    folder : Path
    make : callable, optional
        Takes a name, a shape and a dtype, and returns the tensor to read
        into. If that is sharded, only this process's part is read. Without
        it, whole tensors on the CPU.

    Returns
    -------
    dict of str to Tensor
    """
    from torch.distributed import checkpoint

    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    found: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {
        name: make(name, tuple(about.size), about.properties.dtype)
        for name, about in found.items()
    }
    # Each process plans for itself: if one fails, none waits for it. Alone,
    # it would be warned that it is alone.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is ")
        checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors
