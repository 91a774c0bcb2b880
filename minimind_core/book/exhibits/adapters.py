"""LoRA gone wrong: missing layers, no scale, a patched `forward`.

    from minimind_core.book.exhibits.adapters import apply_patched
    square_layers(model)               # the layers that upstream adapts
    apply_patched(model, rank=8)       # as upstream does it

These functions reproduce upstream's method in our own code: a layer is
adapted if it is square; the update is B A, whatever the rank; and it is
activated by replacing the layer's `forward` with one that calls the old one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimind_core.book.exhibits.bench import (
    learn,
    new_model,
    random_ids,
    seeded,
)
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.config import ModelConfig
from minimind_core.lora import LoRALinear, apply_lora, merge_lora_layers
from minimind_core.model import MiniMind


def square_layers(model: nn.Module) -> list[str]:
    """Return the names of linear layers with as many outputs as inputs.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of str
        The layers that are adapted if they are chosen by shape.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.in_features == module.out_features
    ]


class UnscaledChange(nn.Module):
    """The update B A without the scale alpha / rank.

    Parameters
    ----------
    width : int
        Width of the square layer.
    rank : int
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Linear(width, rank, bias=False)
        self.B = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.A.weight, std=0.02)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply only the update: (..., width) to (..., width)."""
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

    # The closure keeps a reference that copying the model does not change.
    def forward(x: Tensor) -> Tensor:
        return base(x) + change(x)

    return forward


@torch.no_grad()
def half_merge(weight: Tensor, change: Tensor) -> Tensor:
    """Merge as upstream does: convert both parts to float16, then add.

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


# --- measured -----------------------------------------------------------


def measure_square() -> Measured:
    """The share of MiniMind-3's linear layers that is adapted."""
    with torch.device("meta"):
        model = MiniMind(ModelConfig(intermediate_size=2432))
        bug, fix = len(square_layers(model)), len(apply_lora(model))
    return Measured(
        "Number of linear layers that get an adapter, in a model of "
        "MiniMind-3's shape.",
        f"{bug} of {fix}", f"{fix} of {fix}", bug == 16 and fix == 56,
    )  # fmt: skip


def measure_alpha() -> Measured:
    """How the update grows with the rank if all entries are equal."""

    def size(rank: int, scaled: bool) -> float:
        layer = LoRALinear(nn.Linear(8, 8, bias=False), rank, alpha=16)
        change = UnscaledChange(8, rank)
        for parameter in (*layer.parameters(), *change.parameters()):
            nn.init.constant_(parameter, 0.1)
        x = torch.ones(1, 8)
        found = layer(x) - layer.base(x) if scaled else change(x)
        return found.mean().item()

    bug = size(64, False) / size(8, False)
    fix = size(64, True) / size(8, True)
    return Measured(
        "Size of the change at rank 64, divided by its size at rank 8, if "
        "all entries of the adapters are equal.",
        f"{bug:.1f} times", f"{fix:.1f} times",
        abs(bug - 8) < 1e-3 and abs(fix - 1) < 1e-3,
    )  # fmt: skip


def measure_copy() -> Measured:
    """How training the original changes the output of a copy."""

    def moved(adapt: Callable[[nn.Module], object]) -> float:
        model, ids = new_model(), random_ids(2, 20)
        with seeded():
            adapt(model)
        learn(model, ids, 5, "lora")
        twin = copy.deepcopy(model)
        with torch.no_grad():
            before = twin(ids).logits
            learn(model, ids, 5, "lora")
            return float((twin(ids).logits - before).abs().max())

    bug, fix = moved(apply_patched), moved(apply_lora)
    return Measured(
        "Change of a copy's logits while only the original is trained.",
        f"{bug:.2f}", f"{fix:.0f}", bug > 0.01 and fix == 0,
    )  # fmt: skip


@torch.no_grad()
def measure_merge() -> Measured:
    """The difference between adapted and merged."""
    model, ids = new_model(), random_ids(2, 20)
    with seeded():
        apply_lora(model, rank=4)
    learn(model, ids, 20, "lora")
    adapted = model(ids).logits
    halved = copy.deepcopy(model)
    for module in halved.modules():
        if isinstance(module, LoRALinear):
            change = module.lora_B.weight @ module.lora_A.weight
            merged = half_merge(module.base.weight, change * module.scale)
            module.base.weight.copy_(merged.float())
            module.scale = 0.0
    bug = float((halved(ids).logits - adapted).abs().max())
    merge_lora_layers(model)
    fix = float((model(ids).logits - adapted).abs().max())
    return Measured(
        "Largest difference between the logits of the merged and the "
        "adapted model.",
        f"{bug:.0e}", f"{fix:.0e}", bug > 20 * fix and fix < 1e-5,
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="square-layers",
        title="LoRA on square layers only",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:23",
        quote="if isinstance(module, nn.Linear) and module.in_features "
        "== module.out_features:",
        came="2025-02-09 58e3af0",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="Keys, values and the whole MLP are never adapted. If all "
        "heads together are not as wide as the model, the queries and the "
        "output of attention are left out as well.",
        fix="Choose layers by their names, and say which were found.",
        measure=measure_square,
        test="tests/test_exhibits_adapters.py::"
        "test_ours_adapts_by_name_whatever_the_shape",
        page="09_lora",
    ),
    Exhibit(
        key="missing-alpha",
        title="An update that grows with its rank",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_lora.py:17-18",
        quote="def forward(self, x):\n"
        "    return self.B(self.A(x))",
        came="2025-02-09 58e3af0",
        kind=Kind.TIME,
        noticed=Notice.ODD,
        cost="The same learning rate moves the model further the larger the "
        "rank is. So ranks cannot be compared at one learning rate, and the "
        "search for a good one starts again with each rank. With "
        "random entries the growth is smaller, about the square root.",
        fix="Scale the change by alpha / rank.",
        measure=measure_alpha,
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
        quote="def forward_with_lora(x, layer1=original_forward, "
        "layer2=lora):\n"
        "    return layer1(x) + layer2(x)\n"
        "\n"
        "module.forward = forward_with_lora",
        came="2025-02-09 58e3af0",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="A deep copy of an adapted model still uses the original's "
        "base and adapter, because the new `forward` is a function that "
        "holds references to them, and copying a model does not copy "
        "functions. The copy's own weights are never used.",
        fix="Replace the module with one that holds the base and the update.",
        measure=measure_copy,
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
        quote="state_dict[f'{name}.weight'] = "
        "module.weight.data.clone().cpu().half()\n"
        "if hasattr(module, 'lora'):\n"
        "    state_dict[f'{name}.weight'] += "
        "(module.lora.B.weight.data @ "
        "module.lora.A.weight.data).cpu().half()",
        came="2026-03-25 101d7df",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="The merged model differs from the adapted one far more than "
        "rounding in float32 would make it: the weights and the update are "
        "rounded to float16 before they are added.",
        fix="Merge in float32, and round the result once if it must be half.",
        measure=measure_merge,
        test="tests/test_exhibits_adapters.py::"
        "test_our_merge_is_as_exact_as_float32",
        page="09_lora",
    ),
)
