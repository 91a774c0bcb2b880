"""The settings of a model and of a training run, and the named presets.

    from minimind_core.config import ModelConfig, get_preset
    get_preset("base").model.num_parameters()      # MiniMind-3's 63.9 M

Field names are those of `transformers.Qwen3Config`, so that a config means
the same thing here and in the Hugging Face format. A key that is not a field
is an error: a misspelt setting must never be silently ignored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from minimind_core.errors import ConfigError

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("linear", "cosine", "constant")
NONFINITE = ("stop", "skip")

_INTEGERS = {"int", "int | None"}
_NUMBERS = {"float", "float | None"}


class _Strict:
    """Shared by the config classes: checked types, strict dictionaries."""

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            kind = str(field.type)
            if value is None and kind.endswith("| None"):
                continue
            is_bool = isinstance(value, bool)
            right = {
                **dict.fromkeys(_INTEGERS, type(value) is int),
                **dict.fromkeys(
                    _NUMBERS, isinstance(value, int | float) and not is_bool
                ),
                "bool": is_bool,
                "str": isinstance(value, str),
            }.get(kind, True)
            if not right:
                raise ConfigError(
                    f"{type(self).__name__}.{field.name} must be "
                    f"{kind}, not {value!r}"
                )

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{type(self).__name__}: {message}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a dictionary.

        Raises
        ------
        ConfigError
            For a key that is no field of this class.
        """
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no setting {', '.join(unknown)}; "
                f"it has {', '.join(names)}"
            )
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; unknown names are errors."""
        return type(self).from_dict({**self.to_dict(), **changes})


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Strict):
    """The shape of a MiniMind model.

    Attributes
    ----------
    vocab_size : int
        Rows of the embedding table.
    hidden_size : int
        Width of the residual stream.
    num_hidden_layers : int
        Transformer blocks.
    num_attention_heads, num_key_value_heads : int
        Query heads, and the heads their keys and values are shared by::

            queries   q0 q1   q2 q3        num_attention_heads = 4
                        \\ /     \\ /
            keys, values k0      k1         num_key_value_heads = 2

    head_dim : int or None
        Width of one head; ``hidden_size // num_attention_heads`` if None.
    intermediate_size : int or None
        Width of the SwiGLU layer; ``ceil(hidden_size * pi / 64) * 64`` if
        None, as in MiniMind-3.
    max_position_embeddings : int
        Longest sequence, in tokens.
    rope_theta : float
        Base of the rotary frequencies.
    rms_norm_eps : float
        Added to the mean square before the root.
    initializer_range : float
        Standard deviation of the initial weights; the two projections that
        write to the residual stream get it over ``sqrt(2 * layers)``.
    tie_word_embeddings : bool
        One matrix for the embedding and the output head.
    pad_token_id, bos_token_id, eos_token_id : int
        The special tokens' ids.

    Raises
    ------
    ConfigError
        For a value that is out of range or contradicts another.
    """

    vocab_size: int = 6400
    hidden_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        self._check_types()
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "rope_theta", "rms_norm_eps",
            "initializer_range",
        ):  # fmt: skip
            value = getattr(self, name)
            self._require(value > 0, f"{name} must be > 0, not {value}")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        self._require(
            heads % shared == 0,
            f"num_attention_heads ({heads}) must be a multiple of "
            f"num_key_value_heads ({shared})",
        )
        if self.head_dim is None:
            self._require(
                self.hidden_size % heads == 0,
                f"hidden_size ({self.hidden_size}) is no multiple of "
                f"num_attention_heads ({heads}): give head_dim",
            )
            # A frozen dataclass is written through object, once, here.
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        self._require(
            self.head_width > 0 and self.head_width % 2 == 0,
            f"head_dim must be even (RoPE turns pairs), not {self.head_dim}",
        )
        if self.intermediate_size is None:
            width = -(-self.hidden_size * 3.141592653589793 // 64) * 64
            object.__setattr__(self, "intermediate_size", int(width))
        self._require(self.ffn_width > 0, "intermediate_size must be > 0")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            self._require(
                0 <= value < self.vocab_size,
                f"{name} ({value}) is outside the vocabulary "
                f"({self.vocab_size})",
            )

    @property
    def head_width(self) -> int:
        """``head_dim``, after it was derived."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def ffn_width(self) -> int:
        """``intermediate_size``, after it was derived."""
        assert self.intermediate_size is not None
        return self.intermediate_size

    def parameters_by_part(self) -> dict[str, int]:
        """Parameter count by component.

        Returns
        -------
        dict
            Keys ``embedding``, ``attention``, ``mlp``, ``norms`` and
            ``head`` (0 when it is tied to the embedding).
        """
        h, d, n = self.hidden_size, self.head_width, self.num_hidden_layers
        q, kv = self.num_attention_heads, self.num_key_value_heads
        table = self.vocab_size * h
        return {
            "embedding": table,
            "attention": n * (h * d * (q + 2 * kv) + q * d * h),
            "mlp": n * 3 * h * self.ffn_width,
            "norms": n * (2 * h + 2 * d) + h,
            "head": 0 if self.tie_word_embeddings else table,
        }

    def num_parameters(self) -> int:
        """Parameter count of the whole model."""
        return sum(self.parameters_by_part().values())

    def to_hf(self) -> dict[str, Any]:
        """This shape as the ``config.json`` of a `Qwen3ForCausalLM`.

        The rotary base is written twice: transformers 5 reads
        ``rope_parameters``, version 4 reads ``rope_theta`` and would
        silently take 10000 without it.
        """
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **self.to_dict(),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
            },
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, values: dict[str, Any], where: str = "config") -> Self:
        """Read the ``config.json`` of a dense Qwen3 model.

        Parameters
        ----------
        values : dict
            The parsed JSON.
        where : str
            Named in errors, best the file's path.

        Raises
        ------
        ConfigError
            For another architecture, or a feature this model lacks.
        """
        kind = values.get("model_type")
        if kind != "qwen3":
            raise ConfigError(
                f"{where}: model_type is {kind!r}; only dense 'qwen3' "
                "models (MiniMind-3's own shape) can be read"
            )
        rope = values.get("rope_parameters") or values.get("rope_scaling")
        rope = rope or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        for name, wanted, found in (
            ("rope_type", "default", rope_type),
            ("hidden_act", "silu", values.get("hidden_act", "silu")),
            ("attention_bias", False, values.get("attention_bias", False)),
            ("use_sliding_window", False,
             values.get("use_sliding_window", False)),
        ):  # fmt: skip
            if found != wanted:
                raise ConfigError(
                    f"{where}: {name} is {found!r}; only {wanted!r} is "
                    "supported"
                )
        names = {f.name for f in dataclasses.fields(cls)}
        known = {
            k: v for k, v in values.items() if k in names and v is not None
        }
        # Qwen3Config's own defaults, where the file relies on them.
        known.setdefault("head_dim", 128)
        known.setdefault("tie_word_embeddings", False)
        theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
        known["rope_theta"] = float(theta)
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = known["eos_token_id"][0]
        try:
            return cls.from_dict(known)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Strict):
    """How a model is trained; the same for pretraining, SFT and LoRA.

    Attributes
    ----------
    steps : int
        Optimizer steps of the whole run.
    batch_size : int
        Rows per optimizer step, over all processes.
    micro_batch_size : int or None
        Rows per forward pass of one process; None takes them all at once.
        How often gradients are accumulated follows from the three.
    seq_len : int
        Longest row, in tokens.
    packed : bool
        Several documents in one row, kept apart by a mask, instead of one
        document a row.
    optimizer : {"muon", "adamw"}
        ``muon`` is the hybrid: Muon for the hidden matrices, AdamW for
        embeddings and norms.
    lr : float
        Peak learning rate of the parameters that AdamW updates.
    muon_lr_ratio : float
        Muon's peak learning rate over `lr`, so that a change of `lr`
        reaches all parameters.
    beta1, beta2 : float
        AdamW's running averages.
    momentum : float
        Muon's.
    weight_decay : float
        On hidden matrices only, never on norms or embeddings.
    warmup_ratio : float
        Share of the steps over which the rate rises from zero.
    schedule : {"linear", "cosine", "constant"}
        What the rate does afterwards: down to zero in a line; down to a
        tenth in a half cosine; nothing.
    max_grad_norm : float
        The gradients are clipped to this total norm; 0 never clips.
    on_nonfinite : {"stop", "skip"}
        What happens if the loss or the norm of the gradients is infinite or
        not a number. The optimizer is never moved by such a step: the run
        stops with an error, or the step is skipped and counted.
    max_skipped : int
        How many steps in a row may be skipped before the run stops all the
        same. It holds for the steps that the float16 scaler skips as well,
        whatever `on_nonfinite` says.
    seed : int
        Of the initial weights and of the data.
    log_every, validate_every, sample_every, save_every : int
        In steps; 0 only at the end.
    replay : float
        Share of the rows taken from the previous stage's data (SFT: stories;
        LoRA: conversations), so that it is not forgotten.
    dtype : str
        ``auto``, ``float32``, ``bfloat16`` or ``float16``; see `precision`.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    threads : int or None
        CPU threads that torch computes with; None leaves the choice to the
        run, and a resumed run to what the run began with.
    """

    steps: int = 900
    batch_size: int = 32
    micro_batch_size: int | None = None
    seq_len: int = 128
    packed: bool = False
    optimizer: str = "muon"
    lr: float = 3e-3
    muon_lr_ratio: float = 2.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    weight_decay: float = 0.1
    warmup_ratio: float = 0.03
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    on_nonfinite: str = "stop"
    max_skipped: int = 20
    seed: int = 0
    log_every: int = 10
    validate_every: int = 100
    sample_every: int = 0
    save_every: int = 0
    replay: float = 0.0
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("steps", "batch_size", "seq_len", "lr",
                     "muon_lr_ratio"):  # fmt: skip
            value = getattr(self, name)
            self._require(value > 0, f"{name} must be > 0, not {value}")
        for name in ("weight_decay", "max_grad_norm", "log_every",
                     "validate_every", "sample_every", "save_every",
                     "max_skipped"):  # fmt: skip
            value = getattr(self, name)
            self._require(value >= 0, f"{name} must be >= 0, not {value}")
        for name in ("beta1", "beta2", "momentum", "warmup_ratio", "replay"):
            value = getattr(self, name)
            self._require(
                0 <= value < 1, f"{name} must be in [0, 1), not {value}"
            )
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("on_nonfinite", NONFINITE),
        ):
            value = getattr(self, name)
            self._require(
                value in allowed,
                f"{name} must be one of {', '.join(allowed)}, not {value!r}",
            )
        for name in ("micro_batch_size", "threads"):
            value = getattr(self, name)
            self._require(
                value is None or value > 0, f"{name} {value} is not > 0"
            )
        self._require(self.seq_len >= 2, "seq_len must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model's shape with settings that train it well."""

    name: str
    summary: str
    model: ModelConfig
    vocab_size: int
    pretrain: TrainConfig
    sft: TrainConfig
    lora: TrainConfig


def _tiny() -> Preset:
    pretrain = TrainConfig(
        steps=1000,
        seq_len=128,
        lr=8e-3,
        muon_lr_ratio=0.35,
        sample_every=100,
    )
    return Preset(
        name="tiny",
        summary="0.5M parameters, the book's default: a minute on 2 cores",
        vocab_size=1024,
        model=ModelConfig(
            vocab_size=1024,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=448,
            max_position_embeddings=512,
            rope_theta=1e4,
        ),
        pretrain=pretrain,
        sft=pretrain.replace(
            steps=700,
            seq_len=256,
            replay=0.5,
            lr=7e-3,
            muon_lr_ratio=0.5,
            sample_every=0,
        ),
        lora=pretrain.replace(
            steps=200,
            seq_len=256,
            batch_size=16,
            optimizer="adamw",
            weight_decay=0.0,
            lr=5e-3,
        ),
    )


def _large(name: str, summary: str, model: ModelConfig) -> Preset:
    """The two presets meant for a GPU share their training settings."""
    pretrain = TrainConfig(
        steps=20_000,
        batch_size=256,
        micro_batch_size=32,
        seq_len=512,
        packed=True,
        lr=1e-3,
        muon_lr_ratio=5.0,
        schedule="cosine",
        validate_every=500,
        sample_every=1000,
        save_every=1000,
    )
    sft = pretrain.replace(
        steps=5_000, packed=False, lr=2e-4
    )
    return Preset(
        name=name,
        summary=summary,
        model=model,
        vocab_size=model.vocab_size,
        pretrain=pretrain,
        sft=sft,
        lora=sft.replace(
            steps=1_000, optimizer="adamw", weight_decay=0.0, batch_size=64
        ),
    )


#: The presets by name, from the smallest to the largest.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _tiny(),
        _large(
            "small",
            "25.8M parameters: an evening on a free Colab GPU",
            ModelConfig(
                hidden_size=512,
                num_hidden_layers=8,
                num_attention_heads=8,
                num_key_value_heads=2,
                intermediate_size=1408,
            ),
        ),
        _large(
            "base",
            "63.9M parameters: the shape of MiniMind-3",
            ModelConfig(intermediate_size=2432),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """Look a preset up.

    Parameters
    ----------
    name : {"tiny", "small", "base"}

    Raises
    ------
    ConfigError
        For any other name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}; there is {', '.join(PRESETS)}"
        )
    return PRESETS[name]
