"""Which optimizer moves which parameter, and how fast at which step.

    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * learning_rate_scale(step, config)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from minimind_core.config import TrainConfig


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the parameters that learn by what they are.

    Returns
    -------
    dict
        ``matrices``: the weights of hidden layers, which are decayed, and
        which Muon can move. ``tables``: the embedding and the output head.
        ``scales``: norms and biases.
    """
    tables: set[int] = set()
    for name, module in model.named_modules():
        head = name.rpartition(".")[2] == "lm_head"
        if isinstance(module, nn.Embedding) or head:
            tables.update(id(p) for p in module.parameters())
    groups: dict[str, list[nn.Parameter]] = {
        "matrices": [], "tables": [], "scales": [],
    }  # fmt: skip
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            groups["tables"].append(parameter)
        elif parameter.ndim == 2:
            groups["matrices"].append(parameter)
        else:
            groups["scales"].append(parameter)
    return groups


class MuonAdamW(Optimizer):
    """Muon for the matrices and AdamW for the rest, as one optimizer.

    One object, because a gradient scaler decides per optimizer whether to
    skip a step: with two, an overflow could stop one half of the model and
    let the other half move.

    Parameters
    ----------
    muon : torch.optim.Muon
    adamw : torch.optim.AdamW
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.parts: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        groups = [g for part in (muon, adamw) for g in part.param_groups]
        super().__init__([p for g in groups for p in g["params"]], {})
        # The same dictionaries, so that a rate set here is set there.
        self.param_groups = groups

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Let both halves take their step."""
        loss = closure() if closure is not None else None
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both halves' states by name."""
        return {name: p.state_dict() for name, p in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both halves."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        # Loading gives each half new group dictionaries.
        self.param_groups = [
            g for part in self.parts.values() for g in part.param_groups
        ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer a config asks for, over the parameters that learn.

    Parameters
    ----------
    model : nn.Module
    config : TrainConfig
        ``optimizer="muon"`` moves hidden matrices by Muon (Jordan et al.,
        2024) with the update's size matched to AdamW's (Liu et al.,
        arXiv:2502.16982) and all else by AdamW.

    Returns
    -------
    Optimizer
        Each group keeps its peak rate in ``initial_lr``.
    """
    groups = parameter_groups(model)
    betas = (config.beta1, config.beta2)
    no_decay: list[dict[str, Any]] = [
        {"params": groups[name], "weight_decay": 0.0}
        for name in ("tables", "scales")
        if groups[name]
    ]
    optimizer: Optimizer
    if config.optimizer == "muon" and groups["matrices"]:
        muon = Muon(
            groups["matrices"],
            lr=config.lr * config.muon_lr_ratio,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        if not no_decay:
            optimizer = muon
        else:
            adamw = AdamW(no_decay, lr=config.lr, betas=betas)
            optimizer = MuonAdamW(muon, adamw)
    else:
        decayed = {
            "params": groups["matrices"],
            "weight_decay": config.weight_decay,
        }
        optimizer = AdamW(
            [g for g in (decayed, *no_decay) if g["params"]],
            lr=config.lr,
            betas=betas,
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """The share of the peak rate that a step takes.

    Parameters
    ----------
    step : int
        Counted from 0.
    config : TrainConfig
        ``warmup_ratio`` is a share of ``steps``. The rate of the first step
        is not zero.

    Returns
    -------
    float
        Between 0 and 1.
    """
    warm = config.warmup_ratio * config.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = (step - warm) / max(config.steps - warm, 1)
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
    return 1.0


def set_learning_rate(
    optimizer: Optimizer, step: int, config: TrainConfig
) -> float:
    """Give every group its rate for a step; returns the first group's."""
    scale = learning_rate_scale(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale
    return float(optimizer.param_groups[0]["lr"])


def gradient_norm(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the gradients to a total norm, and return the norm they had.

    ``max_norm=0`` only measures.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
