"""LoRA gone wrong: layers left out, a scale forgotten, a forward patched.

    from minimind_core.exhibits.adapters import apply_patched, square_layers
    square_layers(model)               # the layers that upstream adapts
    apply_patched(model, rank=8)       # as upstream does it

Upstream's way in our own words: a layer is adapted if it is square; the
change is B A, whatever the rank; and it is switched on by giving the layer
another `forward` that remembers the old one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimind_core.exhibits.catalogue import Exhibit


def square_layers(model: nn.Module) -> list[str]:
    """The linear layers with as many outputs as inputs.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of str
        What a condition on the shape adapts, instead of one on the name.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.in_features == module.out_features
    ]


class UnscaledChange(nn.Module):
    """B A without alpha / rank: a larger rank is a larger change.

    Parameters
    ----------
    width : int
        Of the square layer.
    rank : int
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Linear(width, rank, bias=False)
        self.B = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.A.weight, std=0.02)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The change alone: (..., width) to (..., width)."""
        change: Tensor = self.B(self.A(x))
        return change


def apply_patched(model: nn.Module, rank: int = 16) -> list[str]:
    """Adapt the square layers by patching their `forward`.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    rank : int

    Returns
    -------
    list of str
        The layers that were adapted. A deep copy of the model copies their
        weights, but its `forward` still calls the original's.
    """
    names = square_layers(model)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.lora = UnscaledChange(layer.in_features, rank)
        layer.forward = _patched(layer)  # type: ignore
    return names


def _patched(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    base = layer.forward
    change: Callable[[Tensor], Tensor] = layer.lora  # type: ignore

    # What it calls it keeps to itself, where no copy of a model looks.
    def forward(x: Tensor) -> Tensor:
        return base(x) + change(x)

    return forward


@torch.no_grad()
def half_merge(weight: Tensor, change: Tensor) -> Tensor:
    """Merge as upstream saves: both halves in float16, then added.

    Parameters
    ----------
    weight, change : Tensor of float32
        A layer's weight, and B A.

    Returns
    -------
    Tensor of float16
        Small changes vanish beside large weights.
    """
    merged = weight.clone().half()
    merged += change.half()
    return merged


EXHIBITS = (
    Exhibit(
        key="square-layers",
        title="LoRA on square layers only",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:23",
        cost="Keys, values and the whole MLP are never adapted; with another "
        "width of heads it is queries and outputs that are left out.",
        fix="Choose layers by their names, and say which were found.",
        test="tests/test_exhibits_adapters.py::"
        "test_ours_adapts_by_name_whatever_the_shape",
        page="09_lora",
    ),
    Exhibit(
        key="missing-alpha",
        title="A change that grows with its rank",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:17-18",
        cost="The same learning rate moves the model further the larger the "
        "rank is, so ranks cannot be compared, and each wants a new rate.",
        fix="Scale the change by alpha / rank.",
        test="tests/test_exhibits_adapters.py::"
        "test_our_change_has_one_size_at_every_rank",
        page="09_lora",
    ),
    Exhibit(
        key="patched-forward",
        title="A copy that answers with the original's weights",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:26-32",
        cost="A deep copy of an adapted model goes on using the original's "
        "base and adapter; what it learns itself it never uses.",
        fix="Replace the module by one that holds the base and the change.",
        test="tests/test_exhibits_adapters.py::"
        "test_a_copy_of_ours_uses_its_own_weights",
        page="09_lora",
    ),
    Exhibit(
        key="half-merge",
        title="Adapters merged in float16",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:59-64",
        cost="The merged model differs from the adapted one hundreds of "
        "times more than rounding in float32 would make it.",
        fix="Merge in float32, and round the result once if it must be half.",
        test="tests/test_exhibits_adapters.py::"
        "test_our_merge_is_as_exact_as_float32",
        page="09_lora",
    ),
)
