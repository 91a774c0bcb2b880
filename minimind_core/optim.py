"""Build the optimizer, and set the learning rate of each step.

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
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from minimind_core.config import TrainConfig
from minimind_core.errors import ConfigError
from minimind_core.sharding import gathered, split_like


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the trainable parameters by their role.

    Parameters
    ----------
    model : nn.Module
        Parameters with ``requires_grad=False`` are left out.

    Returns
    -------
    dict
        ``matrices`` are the weights of hidden layers, which are decayed, and
        which Muon can update. ``embeddings`` are the embedding and the
        output head. ``norms`` are the norms' weights, biases, and all other
        parameters that are not matrices.
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


def orthogonalize(
    matrix: Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float = 1e-7,
) -> Tensor:
    """Bring all singular values of a matrix close to one.

    Newton and Schulz's iteration with the coefficients of Jordan et al.
    (2024). It is computed in the dtype of the matrix.

    Parameters
    ----------
    matrix : Tensor
        Shape ``(rows, columns)``, or ``(matrices, rows, columns)`` for
        several matrices at once.
    coefficients : tuple of float
        Of the matrix itself, its third and its fifth power.
    steps : int
    eps : float
        Smallest norm that the matrix is divided by.

    Returns
    -------
    Tensor
        The same shape and dtype.
    """
    a, b, c = coefficients
    # The products are of the shorter side's size.
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if tall else matrix
    several = matrix.ndim == 3
    size = x.norm(dim=(1, 2), keepdim=True) if several else x.norm()
    x = x / size.clamp(min=eps)
    add_product: Callable[..., Tensor] = (
        torch.baddbmm if several else torch.addmm
    )
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(
            x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a
        )
    return x.mT if tall else x


class _Muon(Muon):
    """`torch.optim.Muon`, with the dtype of its products as an option.

    PyTorch computes them in bfloat16 on every device. A processor without
    bfloat16 emulates it: there a step of the book's small model took five
    times as long with Muon as with AdamW, and one at width 512 sixty times.

    On a GPU, matrices of the same shape are orthogonalized together. One at
    a time, a model of 8 layers would launch some 800 small products a step,
    and the GPU would wait for the program between them.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for batch in same_shape(parameters):
                self._update(group, batch)
        return loss

    def _update(
        self, group: dict[str, Any], parameters: list[nn.Parameter]
    ) -> None:
        """Update parameters of one shape."""
        dtype = getattr(torch, group["ns_dtype"])
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            average = state["momentum_buffer"]
            average.lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(average, group["momentum"])
            # Singular values are those of the whole matrix. If it is
            # sharded, every process computes the same update from it.
            updates.append(gathered(update).to(dtype))
        options = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if len(updates) == 1:
            updates = [orthogonalize(updates[0], *options)]
        else:
            updates = list(orthogonalize(torch.stack(updates), *options))
        # The size of an update of AdamW (Liu et al., 2025).
        size = 0.2 * math.sqrt(max(parameters[0].shape))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            part = split_like(update, parameter)
            parameter.add_(part, alpha=-group["lr"] * size)


def same_shape(
    parameters: list[nn.Parameter], together: bool | None = None
) -> list[list[nn.Parameter]]:
    """Sort matrices into lists that are orthogonalized together.

    Parameters
    ----------
    parameters : list of nn.Parameter
    together : bool, optional
        Whether a list may hold more than one. By default only on a GPU,
        because a CPU gains nothing by it.

    Returns
    -------
    list of list of nn.Parameter
        All of a list have the same shape.
    """
    found: dict[Any, list[nn.Parameter]] = {}
    for number, parameter in enumerate(parameters):
        batched = parameter.is_cuda if together is None else together
        key = (parameter.shape, parameter.device) if batched else number
        found.setdefault(key, []).append(parameter)
    return list(found.values())


def muon_dtype(dtype: str) -> str:
    """Return the dtype in which Muon computes its products.

    Parameters
    ----------
    dtype : str
        Of the training, see `precision.Precision`.

    Returns
    -------
    str
        ``"bfloat16"`` if the training computes in bfloat16, because then the
        device is fast in it. Otherwise ``"float32"``, because float16 lacks
        the range, and a device that trains in float32 may have to emulate
        the other two.
    """
    return "bfloat16" if dtype == "bfloat16" else "float32"


class MuonAdamW(Optimizer):
    """Muon for some groups of parameters and AdamW for the others.

    This is a single optimizer, because a gradient scaler decides for each
    optimizer whether to skip a step: with two, an overflow could skip the
    update of one half of the model and not of the other. Its ``state``,
    ``param_groups`` and ``state_dict`` have the standard layout, so that
    schedulers, accelerate and distributed checkpoints can use it.

    Parameters
    ----------
    params : list of dict
        Groups of parameters. A group with ``use_muon=True`` is updated by
        Muon, which takes matrices only, and any other by
        `torch.optim.AdamW`. Each group may set the options of its optimizer;
        those of `torch.optim.Muon`, whose update has the size of AdamW's
        here (``match_rms_adamw``), and ``ns_dtype``, the dtype of Muon's
        products, see `muon_dtype`.
    """

    def __init__(self, params: list[dict[str, Any]]) -> None:
        super().__init__(params, {"use_muon": False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with the defaults of its optimizer filled in."""
        kind: type[AdamW] | type[Muon] = AdamW
        if param_group.get("use_muon"):
            kind, param_group = _Muon, {"ns_dtype": "bfloat16", **param_group}
        super().add_param_group(kind([param_group]).param_groups[0])

    def _parts(self) -> tuple[Optimizer, Optimizer]:
        """The two optimizers of torch, working on our groups and state.

        They are not created in ``__init__``, because a copied or unpickled
        optimizer receives only its groups and state.
        """
        parts = self.__dict__.get("_kept_parts")
        if parts is None:
            # An optimizer must be created with a parameter; it is not used.
            nothing = torch.zeros(1, 1)
            parts = _Muon([nothing]), AdamW([nothing])
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


def build_optimizer(
    model: nn.Module, config: TrainConfig, dtype: str = "bfloat16"
) -> Optimizer:
    """Build the optimizer that a config asks for.

    Parameters
    ----------
    model : nn.Module
    config : TrainConfig
        ``optimizer="muon"`` updates hidden matrices by Muon (Jordan et al.,
        2024) with the update's size matched to AdamW's (Liu et al.,
        arXiv:2502.16982) and all else by AdamW.
    dtype : str
        Of the training, which decides the dtype of Muon's products, see
        `muon_dtype`. It is a part of the optimizer's saved state.

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
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        # One kernel for all parameters. On a CPU it gives other bits.
        "fused": all(p.is_cuda for p in trained) or None,
    }
    muon = {
        "use_muon": True,
        "lr": config.lr * config.muon_lr_ratio,
        "momentum": config.momentum,
        "adjust_lr_fn": "match_rms_adamw",
        "ns_dtype": muon_dtype(dtype),
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
            "the model has no trainable parameters: every parameter is "
            "frozen (requires_grad=False)"
        )
    optimizer = MuonAdamW(groups) if hybrid else AdamW(groups)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def learning_rate_scale(step: int, config: TrainConfig) -> float:
    """Return the factor on the peak learning rate in a step.

    Parameters
    ----------
    step : int
        Counted from 0.
    config : TrainConfig
        ``warmup_ratio`` is a share of ``steps``. The first step already has
        a rate above zero.

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
    """Set the learning rate of each group to its peak times `scale`.

    Parameters
    ----------
    optimizer : Optimizer
        For a group without ``initial_lr``, its current rate is the peak.
    scale : float

    Returns
    -------
    dict of str to float
        The rates under their names in the log: ``lr_matrices`` for the group
        of that name, ``lr_0`` for the first of several unnamed groups. Empty
        for a single group without a name.
    """
    rates = {}
    for number, group in enumerate(optimizer.param_groups):
        peak = group.setdefault("initial_lr", group["lr"])
        group["lr"] = peak * scale
        if "name" in group or len(optimizer.param_groups) > 1:
            rates[f"lr_{group.get('name', number)}"] = float(group["lr"])
    return rates


def gradient_norm(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the gradients to a total norm, and return their norm.

    Parameters
    ----------
    model : nn.Module
    max_norm : float
        0 measures the norm without clipping.

    Returns
    -------
    Tensor, shape ()
        Total norm of the gradients before clipping. It is not finite if any
        gradient is not finite.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    # Of sharded gradients, this is the norm of all parts together.
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = gathered(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(parameters, max_norm or math.inf, norm)
    return norm
