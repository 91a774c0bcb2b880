"""LoRA by hand: train a low-rank update of a frozen matrix.

    from minimind_core.lora import apply_lora, merge_lora_layers
    apply_lora(model, rank=8, alpha=16)        # only the adapters train
    merge_lora_layers(model)                   # a plain model again

A matrix W is frozen, and ``alpha / rank * B @ A`` is added to it, where
A has `rank` rows and B has `rank` columns. B starts at zero, so that the
adapted model starts as the model it was (Hu et al., arXiv:2106.09685). The
same method through peft, with adapter files that other tools read, is in
`minimind_core.adapters`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.errors import ConfigError

ALL_LINEAR = (
    "q_proj", "k_proj", "v_proj", "o_proj",
    "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
TIED = ("embed_tokens", "lm_head")


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update.

    Parameters
    ----------
    base : nn.Linear
        The layer to adapt; its weights are frozen.
    rank : int
        Rank of the update.
    alpha : float
        The update is scaled by ``alpha / rank``, so that the size of the
        change depends little on the rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base and the update: (..., in) to (..., out)."""
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the base with the update added to its weights."""
        change = self.lora_B.weight @ self.lora_A.weight
        self.base.weight += change * self.scale
        return self.base.requires_grad_(True)


def apply_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = ALL_LINEAR,
) -> list[str]:
    """Add LoRA to the linear layers with certain names.

    Modules are replaced, not patched, so that copying the model also copies
    its adapters. Layers are found by name, whatever their shape.

    Parameters
    ----------
    model : nn.Module
        Changed in place; afterwards only the adapters are trainable.
    rank : int
    alpha : float
    targets : sequence of str
        The last part of a layer's name.

    Returns
    -------
    list of str
        The layers that were adapted.

    Raises
    ------
    ConfigError
        If a target does not exist or must not be adapted.
    """
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    refuse_tied(targets, getattr(model, "config", None))
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in targets
    ]
    unknown = set(targets) - {name.rpartition(".")[2] for name in found}
    if unknown:
        raise ConfigError(
            f"no linear layer is named {', '.join(sorted(unknown))}"
        )
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        holder = model.get_submodule(parent)
        layer = LoRALinear(getattr(holder, last), rank, alpha)
        setattr(holder, last, layer.to(layer.base.weight.device))
    return found


def merge_lora_layers(model: nn.Module) -> nn.Module:
    """Merge every adapter into its base, leaving a plain model.

    Returns
    -------
    nn.Module
        `model`, changed in place.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.merged())
    return model.requires_grad_(True)


def refuse_tied(targets: Sequence[str], config: Any) -> None:
    """Refuse to adapt tied weights: merging would change both ends."""
    tied = getattr(config, "tie_word_embeddings", False)
    wrong = sorted(set(targets) & set(TIED))
    if tied and wrong:
        raise ConfigError(
            f"{', '.join(wrong)} shares its weights with the other end of "
            "the model, so a merged adapter would change both; to train "
            "single tokens use peft's trainable_token_indices"
        )
