"""The settings of a model and of a training run, and the named presets.

    from minimind_core.config import ModelConfig, get_preset
    get_preset("base").model.num_parameters()      # MiniMind-3's 63.9 M
    ModelConfig().replace(hidden_size=1024)        # derived sizes follow

The field names of `ModelConfig` are those of `transformers.Qwen3Config`, so
that a config means the same thing here and in the Hugging Face format. Types
and ranges are declared with the fields and checked by pydantic. A key that
is not a field is an error that suggests the nearest name, because a misspelt
setting that is silently ignored spoils an experiment without a trace.

`minimind_core.settings` reads settings from files and from the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
)

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from minimind_core.errors import ConfigError

Optimizer = Literal["muon", "adamw"]
Schedule = Literal["linear", "cosine", "constant"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
NonFinite = Literal["stop", "skip"]
BadRecord = Literal["stop", "skip"]

OPTIMIZERS = get_args(Optimizer)
SCHEDULES = get_args(Schedule)

Count = Annotated[int, Field(gt=0)]
Every = Annotated[int, Field(ge=0)]
TokenId = Annotated[int, Field(ge=0)]
# torch's generators take no larger seed.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

T = TypeVar("T")


# --- how settings are checked ----------------------------------------------


@dataclass_transform(frozen_default=True, kw_only_default=True)
def checked(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields pydantic checks.

    Types are strict: the string ``"128"`` is not an integer, and ``True``
    is not a number. What pydantic finds wrong becomes a `ConfigError`.
    """
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=config)(
        cls
    )
    build = made.__init__

    @functools.wraps(build)
    def __init__(self: Any, **values: Any) -> None:
        try:
            build(self, **values)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(cls, error, values)) from None

    made.__init__ = __init__
    return made  # type: ignore[no-any-return]


def _explain(
    cls: type, error: pydantic.ValidationError, values: Mapping[str, Any]
) -> str:
    """List every problem, with the setting, its value and what is allowed."""
    names = [f.name for f in dataclasses.fields(cls)]
    found = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if name and name not in names:
            found.append(unknown_setting(name, names, cls.__name__))
        elif "error" in problem.get("ctx", {}):
            found.append(f"{cls.__name__}: {problem['ctx']['error']}")
        else:
            must = problem["msg"].replace("Input should be", "must be")
            found.append(
                f"{cls.__name__}.{name} {must}, not {values.get(name)!r}"
            )
    return "; ".join(found)


#: Names that other libraries use for some settings.
ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_steps": "steps",
    "max_length": "seq_len",
    "clip": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "accumulation_steps": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
}


def unknown_setting(name: str, known: Iterable[str], owner: str) -> str:
    """Return the error message for an unknown setting, with a suggestion.

    Parameters
    ----------
    name : str
        As it was given.
    known : iterable of str
    owner : str
        The class or section that was searched.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if ELSEWHERE.get(name) in known:
        near = [ELSEWHERE[name]]
    advice = (
        f"did you mean {near[0]!r}?" if near
        else f"it has {', '.join(known)}"
    )  # fmt: skip
    return f"{owner} has no setting {name!r}; {advice}"


class _Settings:
    """Methods that both config classes share."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def as_given(self) -> dict[str, Any]:
        """The fields as they were given: None for a size that is derived."""
        return self.to_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a dictionary.

        Raises
        ------
        ConfigError
            For a key that is not a field of this class, with the nearest
            field name, and for a value that is not allowed.
        """
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; unknown names are errors."""
        return type(self)(**{**self.as_given(), **changes})

    __replace__ = replace  # what copy.replace calls, from Python 3.13


# --- the model -------------------------------------------------------------


@checked
class ModelConfig(_Settings):
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
        Number of query heads, and of the key/value heads they share::

            queries   q0 q1   q2 q3        num_attention_heads = 4
                        \\ /     \\ /
            keys, values k0      k1         num_key_value_heads = 2

    head_dim : int
        Width of one head. If it is not given, or None, it is
        ``hidden_size // num_attention_heads``.
    intermediate_size : int
        Width of the SwiGLU layer. If it is not given, or None, it is
        ``ceil(hidden_size * pi / 64) * 64``, as in MiniMind-3.
    max_position_embeddings : int
        Longest sequence, in tokens.
    rope_theta : float
        Base of the rotary frequencies.
    rms_norm_eps : float
        Added to the mean square before the root.
    initializer_range : float
        Standard deviation of the initial weights. For the two projections
        that write to the residual stream it is divided by
        ``sqrt(2 * layers)``.
    tie_word_embeddings : bool
        One matrix for the embedding and the output head.
    pad_token_id, bos_token_id, eos_token_id : int
        The special tokens' ids.

    Raises
    ------
    ConfigError
        For a value that is out of range or contradicts another.

    Notes
    -----
    `head_dim` and `intermediate_size` always read as numbers. The config
    remembers which of the two it derived, so that `replace` derives them
    again when the width changes, and keeps them when they were given.
    (`dataclasses.replace` cannot know, and keeps both.)
    """

    vocab_size: Count = 6400
    hidden_size: Count = 768
    num_hidden_layers: Count = 8
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count = 32768
    rope_theta: Positive = 1e6
    rms_norm_eps: Positive = 1e-6
    initializer_range: Positive = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: TokenId = 0
    bos_token_id: TokenId = 1
    eos_token_id: TokenId = 2

    def __post_init__(self) -> None:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        _require(
            heads % shared == 0,
            f"num_attention_heads ({heads}) must be a multiple of "
            f"num_key_value_heads ({shared})",
        )
        derived = {}
        if self.head_dim is None:
            _require(
                self.hidden_size % heads == 0,
                f"hidden_size ({self.hidden_size}) is not a multiple of "
                f"num_attention_heads ({heads}), so head_dim must be given",
            )
            derived["head_dim"] = self.hidden_size // heads
        if self.intermediate_size is None:
            width = math.ceil(self.hidden_size * math.pi / 64) * 64
            derived["intermediate_size"] = width
        # A frozen dataclass is written through object, once, here.
        for name, value in (*derived.items(), ("_derived", tuple(derived))):
            object.__setattr__(self, name, value)
        _require(
            self.head_width % 2 == 0,
            "head_dim must be even, because RoPE rotates pairs of channels, "
            f"not {self.head_dim}",
        )
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            _require(
                value < self.vocab_size,
                f"{name} ({value}) is outside the vocabulary "
                f"({self.vocab_size})",
            )

    @property
    def head_width(self) -> int:
        """`head_dim` as an int, for type checkers."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def ffn_width(self) -> int:
        """`intermediate_size` as an int, for type checkers."""
        assert self.intermediate_size is not None
        return self.intermediate_size

    def as_given(self) -> dict[str, Any]:
        """The fields as they were given: None for a size that is derived."""
        derived: tuple[str, ...] = getattr(self, "_derived", ())
        return {**self.to_dict(), **dict.fromkeys(derived)}

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
        """Total number of parameters."""
        return sum(self.parameters_by_part().values())

    def to_hf(self) -> dict[str, Any]:
        """Return the ``config.json`` of a `Qwen3ForCausalLM` of this shape.

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
            Named in error messages; ideally the path of the file.

        Raises
        ------
        ConfigError
            For another architecture, or an option that is not supported.
        """
        kind = values.get("model_type")
        if kind != "qwen3":
            raise ConfigError(
                f"{where}: model_type is {kind!r}; only dense 'qwen3' "
                "models (MiniMind-3's own shape) can be read"
            )
        rope = values.get("rope_parameters") or values.get("rope_scaling")
        rope = rope or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{where}: rope_parameters must be an object")
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
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            raise ConfigError(f"{where}: rope_theta must be a number")
        ends = known.get("eos_token_id")
        if isinstance(ends, list) and ends:
            known["eos_token_id"] = ends[0]
        try:
            known["rope_theta"] = float(theta)
            return cls.from_dict(known)
        except (ConfigError, OverflowError) as error:
            raise ConfigError(f"{where}: {error}") from None


def _require(holds: bool, message: str) -> None:
    # pydantic turns a ValueError into the reason of its own error.
    if not holds:
        raise ValueError(message)


# --- training --------------------------------------------------------------


@checked
class TrainConfig(_Settings):
    """How a model is trained, in pretraining, fine-tuning and LoRA alike.

    Attributes
    ----------
    steps : int
        Optimizer steps of the whole run.
    batch_size : int
        Rows per optimizer step, over all processes.
    micro_batch_size : int or None
        Rows per forward pass of one process; None takes them all at once.
        The number of gradient accumulation steps follows from these two
        and the number of processes.
    seq_len : int
        Longest row, in tokens; at least 2.
    packed : bool
        Put several documents into a row, separated by the attention mask,
        instead of one document per row.
    optimizer : {"muon", "adamw"}
        ``muon`` is the hybrid: Muon for the hidden matrices, AdamW for
        embeddings and norms.
    lr : float
        Peak learning rate of the parameters that AdamW updates.
    muon_lr_ratio : float
        Ratio of Muon's peak learning rate to `lr`, so that a change of `lr`
        affects all parameters.
    beta1, beta2 : float
        Decay rates of AdamW's running averages.
    momentum : float
        Muon's momentum.
    weight_decay : float
        Applied to hidden matrices only, never to norms or embeddings.
    warmup_ratio : float
        Share of the steps over which the rate rises from zero.
    schedule : {"linear", "cosine", "constant"}
        The learning rate after warm-up: it decays linearly to zero, decays
        along a half cosine to a tenth of the peak, or stays constant.
    max_grad_norm : float
        Gradients are clipped to this total norm; 0 disables clipping.
    on_nonfinite : {"stop", "skip"}
        What happens if the loss or the norm of the gradients is infinite or
        not a number. The optimizer never takes such a step: either the run
        stops with an error, or the step is skipped and counted.
    max_skipped : int
        How many consecutive steps may be skipped before the run stops. This
        limit also applies to steps that the float16 scaler skips, for
        either value of `on_nonfinite`.
    on_bad_record : {"stop", "skip"}
        What happens to a record of the data that cannot be read or used, such
        as a line that is not JSON: either the run stops with an error that
        names its file and line, or the record is left out and counted.
    seed : int
        Seed of the initial weights and of the order of the data.
    log_every, validate_every, sample_every, save_every : int
        Steps between log lines, validations, samples and checkpoints; 0
        means only at the end of the run.
    replay : float
        Share of the rows taken from the previous stage's data (SFT: stories;
        LoRA: conversations), so that it is not forgotten.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Number format of the computation; see `precision`.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    tf32 : bool
        Whether float32 products may run in TF32 on a GPU that has it, which
        is faster and less exact; see `acceleration.float32_products`.
    compile : bool
        Compile the model with `torch.compile`; see `acceleration.accelerate`.
        The first step then takes up to a minute longer. Rows are padded to
        `seq_len`, so that their shape does not change.
    activation_checkpointing : bool
        Compute the activations again in the backward pass instead of keeping
        them, which takes less memory and more time.
    loss_chunk : int or None
        On a GPU, compute the loss over this many positions at a time, so
        that the logits of a large batch never exist all at once; None takes
        as many as fit into 2 GiB, see `acceleration.accelerate`.
    threads : int or None
        CPU threads that torch uses. With None the run chooses, and a resumed
        run keeps the number it started with.
    shard : bool
        Under torchrun, spread the weights, the gradients and the optimizer's
        state over the processes (FSDP) instead of giving each a copy of all
        of them (DDP); see `sharding`. One process alone has nothing to
        spread.
    """

    steps: Count = 900
    batch_size: Count = 32
    micro_batch_size: Count | None = None
    seq_len: Annotated[int, Field(ge=2)] = 128
    packed: bool = False
    optimizer: Optimizer = "muon"
    lr: Positive = 3e-3
    muon_lr_ratio: Positive = 2.0
    beta1: Share = 0.9
    beta2: Share = 0.95
    momentum: Share = 0.95
    weight_decay: NotNegative = 0.1
    warmup_ratio: Share = 0.03
    schedule: Schedule = "linear"
    max_grad_norm: NotNegative = 1.0
    on_nonfinite: NonFinite = "stop"
    max_skipped: Every = 20
    on_bad_record: BadRecord = "stop"
    seed: Seed = 0
    log_every: Every = 10
    validate_every: Every = 100
    sample_every: Every = 0
    save_every: Every = 0
    replay: Share = 0.0
    dtype: Dtype = "auto"
    device: str = "auto"
    tf32: bool = False
    compile: bool = False
    activation_checkpointing: bool = False
    loss_chunk: Count | None = None
    threads: Count | None = None
    shard: bool = False


# --- presets ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A model shape, with training settings that work well for it.

    Attributes
    ----------
    name, summary : str
    model : ModelConfig
    vocab_size : int
        Vocabulary size of the tokenizer that is trained for it.
    pretrain, sft, lora : TrainConfig
        The settings of each stage.
    """

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
        lr=1.6e-2,
        muon_lr_ratio=0.175,
        sample_every=100,
    )
    return Preset(
        name="tiny",
        summary="0.6M parameters: the book's default, trained on a processor",
        vocab_size=1024,
        model=ModelConfig(
            vocab_size=1024,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
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
            sample_every=0,
            optimizer="adamw",
            weight_decay=0.0,
            lr=5e-3,
        ),
    )


def _large(name: str, summary: str, model: ModelConfig) -> Preset:
    """The presets meant for a GPU share their training settings."""
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
        steps=5_000, packed=False, lr=2e-4, sample_every=0
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


def _t4() -> Preset:
    """The size that one free GPU can train within an hour.

    The settings are those of the larger presets with a quarter of the batch,
    because a run of 6,000 steps should not be one of 1,500.
    """
    large = _large(
        "t4",
        "13.2M parameters: meant for an hour of a T4, the free GPU of Colab",
        ModelConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
        ),
    )
    often = {"batch_size": 64, "save_every": 500}
    return dataclasses.replace(
        large,
        pretrain=large.pretrain.replace(steps=6_000, **often),
        sft=large.sft.replace(steps=1_000, **often),
        lora=large.lora.replace(steps=300, **often | {"batch_size": 32}),
    )


#: The presets by name, from the smallest to the largest.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _tiny(),
        _t4(),
        _large(
            "small",
            "25.8M parameters: meant for one GPU",
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
            "63.9M parameters: the shape of MiniMind-3, meant for one GPU",
            ModelConfig(),
        ),
    )
}


def get_preset(name: str | Preset) -> Preset:
    """Return the preset with a given name.

    Parameters
    ----------
    name : {"tiny", "t4", "small", "base"} or Preset
        A `Preset` is returned unchanged.

    Raises
    ------
    ConfigError
        For any other name.
    """
    if isinstance(name, Preset):
        return name
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]
