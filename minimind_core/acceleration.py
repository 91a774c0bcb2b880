"""Make training faster, or smaller, without changing what it computes.

    from minimind_core.acceleration import accelerate
    accelerate(model, compile=True, activation_checkpointing=True)

    minimind pretrain --preset base --set compile=true

What is meant for a GPU is off by default, because compiling takes longer than
the book's small runs. Everything here also runs on a CPU, where the tests
check that the results are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minimind_core.errors import ConfigError
from minimind_core.model import Block, MiniMind, head_loss

LOGITS_BYTES = 2**31
"""Size of the logits, in float32, up to which a loss is not cut in chunks.
A vocabulary of 6,400 tokens reaches it at 84,000 positions, and one of
150,000 tokens at 3,600."""


def accelerate(
    model: nn.Module,
    *,
    compile: bool = False,
    activation_checkpointing: bool = False,
    loss_chunk: int | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Prepare a model for training, in place.

    Parameters
    ----------
    model : nn.Module
        Its parameters, their names and its results stay the same. Calling
        this again replaces what an earlier call has set.
    compile : bool
        Compile the forward and backward pass with `torch.compile`. In a
        `MiniMind` each block is compiled as one graph without breaks, which
        takes the time of compiling a single block, since all blocks have the
        same code; so is the loss. Any other model is compiled as a whole,
        and may have breaks. Generation and validation are not compiled,
        because their shapes change with each call.
    activation_checkpointing : bool
        Keep only the input of each block for the backward pass, and compute
        the rest again (Chen et al., arXiv:1604.06174). This takes about one
        third more time, and most of the memory of the activations less.
    loss_chunk : int, optional
        See `MiniMind`; by default as many positions as keep their logits
        within `LOGITS_BYTES`. Computing the loss in several chunks takes
        some time, because the logits are computed twice. No effect on
        another model.
    backend : str or callable
        Of `torch.compile`.

    Raises
    ------
    ConfigError
        If activation checkpointing is requested for a model that does not
        offer it.
    """
    if not isinstance(model, MiniMind):
        _accelerate_other(model, compile, activation_checkpointing, backend)
        return
    fitting = LOGITS_BYTES // (4 * model.config.vocab_size)
    model.loss_chunk = loss_chunk or max(1, fitting)
    run_block: Callable[..., Any] = Block.forward
    model.__dict__.pop("head_loss", None)
    if compile:
        options: dict[str, Any] = {"fullgraph": True, "backend": backend}
        run_block = torch.compile(Block.forward, **options)
        model.__dict__["head_loss"] = torch.compile(head_loss, **options)
    for block in model.model.layers:
        assert isinstance(block, Block)
        block.__dict__.pop("forward", None)
        if compile or activation_checkpointing:
            # Replacing `forward`, and not the block, keeps the names of the
            # parameters and leaves the hooks of FSDP out of the graph.
            block.__dict__["forward"] = _BlockForward(
                block, run_block, activation_checkpointing
            )


class _BlockForward:
    """The forward pass of a block, other in training than elsewhere."""

    def __init__(
        self, block: Block, run: Callable[..., Any], recompute: bool
    ) -> None:
        self.block, self.run, self.recompute = block, run, recompute

    def __call__(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: Any = None,
        cache: Any = None,
        maps: Any = None,
    ) -> torch.Tensor:
        block = self.block
        training = block.training and torch.is_grad_enabled()
        if not training or cache is not None or maps is not None:
            return Block.forward(block, x, rope, mask, cache, maps)
        if self.recompute:
            found = checkpoint(
                self.run, block, x, rope, mask, use_reentrant=False
            )
        else:
            found = self.run(block, x, rope, mask)
        assert isinstance(found, torch.Tensor)
        return found


def _accelerate_other(
    model: Any,
    compile: bool,
    activation_checkpointing: bool,
    backend: str | Callable[..., Any],
) -> None:
    """`accelerate` for a model of transformers, of peft, or your own."""
    if activation_checkpointing:
        # The first name is the newer one in transformers.
        enable = getattr(
            model, "activation_checkpointing_enable",
            getattr(model, "gradient_checkpointing_enable", None),
        )  # fmt: skip
        if enable is None:
            raise ConfigError(
                "activation_checkpointing is on, but a "
                f"{type(model).__name__} has no method "
                "gradient_checkpointing_enable, as models of transformers do"
            )
        enable({"use_reentrant": False})
    if compile:
        model.compile(backend=backend)


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let float32 matrix products of a GPU run in TF32, within this context.

    TF32 has the range of float32 and ten bits after the leading one, where
    float32 has 23. NVIDIA's GPUs from Ampere on compute in it several times
    faster; other devices ignore it. It affects only what runs in float32.

    Parameters
    ----------
    tf32 : bool
        False leaves everything as it is.
    """
    if not tf32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
