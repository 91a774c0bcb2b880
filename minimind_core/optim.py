"""The optimizer, and the learning rate of each step.

    optimizer = build_optimizer(model, config)
    for step in range(config.steps):
        set_learning_rates(optimizer, learning_rate_scale(step, config))

The parameters are sorted into three groups, which differ in their learning
rate, their weight decay and, with the hybrid, in their optimizer. Each group
has a ``name``, and keeps its peak rate in ``initial_lr``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from minimind_core.config import TrainConfig
from minimind_core.errors import ConfigError


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters by what they are.

    Parameters
    ----------
    model : nn.Module
        Any. Parameters with ``requires_grad=False`` are left out.

    Returns
    -------
    dict
        ``matrices`` are the weights of hidden layers, which are decayed, and
        which Muon can update. ``embeddings`` are the embedding and the
        output head. ``norms`` are the norms' weights, biases, and whatever
        else is no matrix.
    """
    embeddings: set[int] = set()
    for name, module in model.named_modules():
        head = name.rpartition(".")[2] == "lm_head"
        if isinstance(module, nn.Embedding) or head:
            embeddings.update(id(p) for p in module.parameters())
    groups: dict[str, list[nn.Parameter]] = {
        "matrices": [], "embeddings": [], "norms": [],
    }  # fmt: skip
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            groups["embeddings"].append(parameter)
        elif parameter.ndim == 2:
            groups["matrices"].append(parameter)
        else:
            groups["norms"].append(parameter)
    return groups


class MuonAdamW(Optimizer):
    """Muon for some groups of parameters and AdamW for the others.

    This is one optimizer, because a gradient scaler decides per optimizer
    whether to skip a step: with two, an overflow could stop one half of the
    model and let the other half move. Its ``state``, ``param_groups`` and
    ``state_dict`` have the standard layout, so that schedulers, accelerate
    and distributed checkpoints can use it like any other.

    Parameters
    ----------
    params : list of dict
        Groups of parameters. A group with ``use_muon=True`` is updated by
        `torch.optim.Muon`, which takes matrices only, and any other by
        `torch.optim.AdamW`. Each group may set the options of its optimizer.
    """

    def __init__(self, params: list[dict[str, Any]]) -> None:
        super().__init__(params, {"use_muon": False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the defaults of its optimizer filled in."""
        kind = Muon if param_group.get("use_muon") else AdamW
        super().add_param_group(kind([param_group]).param_groups[0])

    def _parts(self) -> tuple[Optimizer, Optimizer]:
        """Torch's own two optimizers, working on our groups and state.

        They are not made in ``__init__``, because a copied or unpickled
        optimizer is given its groups and state only.
        """
        parts = self.__dict__.get("_kept_parts")
        if parts is None:
            # Each needs a parameter to be made with; it never updates it.
            nothing = torch.zeros(1, 1)
            parts = Muon([nothing]), AdamW([nothing])
            self.__dict__["_kept_parts"] = parts
        for part, use_muon in zip(parts, (True, False), strict=True):
            part.state = self.state
            part.param_groups = [
                group
                for group in self.param_groups
                if group["use_muon"] == use_muon
            ]
        return parts

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts():
            part.step()
        return loss


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of a config, over the trainable parameters.

    Parameters
    ----------
    model : nn.Module
    config : TrainConfig
        ``optimizer="muon"`` updates hidden matrices by Muon (Jordan et al.,
        2024) with the update's size matched to AdamW's (Liu et al.,
        arXiv:2502.16982) and all else by AdamW.

    Returns
    -------
    Optimizer
        Each group has a ``name``, see `parameter_groups`, and keeps its peak
        rate in ``initial_lr``.

    Raises
    ------
    ConfigError
        If every parameter is frozen.
    """
    adamw = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
    muon = {
        "use_muon": True,
        "lr": config.lr * config.muon_lr_ratio,
        "momentum": config.momentum,
        "adjust_lr_fn": "match_rms_adamw",
    }
    hybrid = config.optimizer == "muon"
    weight_decay = {"matrices": config.weight_decay}
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": parameters,
            "weight_decay": weight_decay.get(name, 0.0),
            **(muon if hybrid and name == "matrices" else adamw),
        }
        for name, parameters in parameter_groups(model).items()
        if parameters
    ]
    if not groups:
        raise ConfigError(
            "there is nothing to train: every parameter of the model is "
            "frozen (requires_grad=False)"
        )
    optimizer = MuonAdamW(groups) if hybrid else AdamW(groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """What the peak learning rate is multiplied by in a step.

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


def set_learning_rates(
    optimizer: Optimizer, scale: float
) -> dict[str, float]:
    """Give each group its peak rate times `scale`.

    Parameters
    ----------
    optimizer : Optimizer
        A group without ``initial_lr`` has its present rate as its peak.
    scale : float

    Returns
    -------
    dict of str to float
        The rates as the log names them: ``lr_matrices`` for the group of
        that name, ``lr_0`` for the first of several that have none. A
        single group without a name gives nothing.
    """
    rates = {}
    for number, group in enumerate(optimizer.param_groups):
        peak = group.setdefault("initial_lr", group["lr"])
        group["lr"] = peak * scale
        if "name" in group or len(optimizer.param_groups) > 1:
            rates[f"lr_{group.get('name', number)}"] = float(group["lr"])
    return rates


def gradient_norm(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the gradients to a total norm.

    Parameters
    ----------
    model : nn.Module
    max_norm : float
        0 only measures.

    Returns
    -------
    Tensor, shape ()
        The norm of all gradients together before they were clipped. It is
        not finite if one of them is not.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
