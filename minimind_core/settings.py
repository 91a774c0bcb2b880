"""Settings of a run: where they come from and which take precedence.

    minimind pretrain --config runs/base/minimind.json --set lr=3e-4 \
        --set model.num_hidden_layers=4 --out runs/again

    from minimind_core.settings import read_settings
    pretrain("runs/again", **read_settings("small.toml", "pretrain"))

A run starts from the settings of a preset, or from ones that suit the model
it continues. A settings file overrides these, and arguments of the call or of
the command line override both. A file is JSON, TOML or YAML; every run writes
one, its ``minimind.json``::

    preset = "small"
    data = ["stories.jsonl"]        # relative to this file
    lr = 3e-4                       # a setting by its name alone,

    [model]                         # or in its section
    num_hidden_layers = 4
"""

from __future__ import annotations

import math
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from minimind_core.checkpoint import check_format
from minimind_core.config import (
    PRESETS,
    ModelConfig,
    Preset,
    TrainConfig,
    get_preset,
    unknown_setting,
)
from minimind_core.cost import largest_rows
from minimind_core.data import is_file_name
from minimind_core.errors import ConfigError
from minimind_core.files import read_json
from minimind_core.run import RUN_FILE, check_metadata, check_names

SECTIONS: dict[str, type] = {"model": ModelConfig, "train": TrainConfig}

#: What a file may hold besides settings: the arguments of each stage.
ARGUMENTS = {
    "pretrain": ("preset", "data", "tokenizer", "base", "pth"),
    "sft": ("preset", "data", "base", "pth"),
    "lora": (
        "preset", "data", "base", "rank", "alpha", "targets", "dropout",
        "use_rslora", "use_dora",
    ),
}  # fmt: skip


# --- one setting -----------------------------------------------------------


@lru_cache(maxsize=2)
def _kinds(section: str) -> dict[str, Any]:
    """The declared type of each setting of a section."""
    return typing.get_type_hints(SECTIONS[section], include_extras=True)


def find_setting(name: str) -> tuple[str, str]:
    """Return the section and the field that a setting's name refers to.

    Parameters
    ----------
    name : str
        ``lr``, ``train.lr`` or ``model.num_hidden_layers``. A bare name
        must exist in only one section.

    Raises
    ------
    ConfigError
        If there is no such setting, with the nearest name, or if there
        are two.
    """
    section, dot, field = name.rpartition(".")
    if dot:
        if section not in SECTIONS:
            raise ConfigError(
                f"{name}: there is no section {section!r}, only "
                f"{' and '.join(SECTIONS)}"
            )
        if field not in _kinds(section):
            owner = SECTIONS[section].__name__
            raise ConfigError(unknown_setting(field, _kinds(section), owner))
        return section, field
    owners = [s for s in SECTIONS if name in _kinds(s)]
    if len(owners) > 1:
        both = " or ".join(f"{owner}.{name}" for owner in owners)
        raise ConfigError(f"{name} could be either: write {both}")
    if not owners:
        known = [n for s in reversed(SECTIONS) for n in _kinds(s)]
        raise ConfigError(unknown_setting(name, known, "a run"))
    return owners[0], name


def parse_value(section: str, field: str, text: str) -> Any:
    """Parse a setting's value from the command line.

    Parameters
    ----------
    section, field : str
        See `find_setting`.
    text : str
        ``3e-4``, ``true``, ``muon``, ``none``.

    Raises
    ------
    ConfigError
        If the setting cannot have this value.
    """
    kind = _kinds(section)[field]
    if text.lower() in ("none", "null") and type(None) in typing.get_args(
        kind
    ):
        return None
    try:
        return pydantic.TypeAdapter(kind).validate_strings(text)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        must = problem.replace("Input should be", "must be")
        raise ConfigError(
            f"{section}.{field} {must}, not {text!r}"
        ) from None


def parse_assignments(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Parse the ``--set NAME=VALUE`` options of the command line.

    Returns
    -------
    dict
        The changes of ``model`` and of ``train``, by field.

    Raises
    ------
    ConfigError
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {word}: write NAME=VALUE, for example --set lr=3e-4"
            )
        section, field = find_setting(name.strip())
        found[section][field] = parse_value(section, field, text.strip())
    return found


# --- files -----------------------------------------------------------------


def _parse(path: Path, text: str) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"not valid YAML ({error})") from None
    raise ValueError(
        "settings are read from .json, .toml, .yaml and .yml files"
    )


def _load(path: Path) -> dict[str, Any]:
    """Read the names and values in a file."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; name a file in it")
    if path.suffix.lower() == ".json":
        return read_json(path)
    try:
        values = _parse(path, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:  # of TOML and of UTF-8 too
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected names and values")
    return values


def read_settings(
    path: str | Path, stage: str, *, resume: bool = False
) -> dict[str, Any]:
    """Read the arguments of a stage from a file.

    Parameters
    ----------
    path : path
        JSON, TOML or YAML; a run's ``minimind.json`` repeats that run.
        Paths in it are relative to its folder.
    stage : {"pretrain", "sft", "lora"}
    resume : bool
        Whether the file describes a run that is going to be continued, and
        not repeated. The trainer then finds the number format and the number
        of threads in the checkpoint, and the caller passes its own code
        (callbacks and the like) again.

    Returns
    -------
    dict
        Keyword arguments of `recipes.pretrain`, `recipes.sft` or
        `recipes.train_lora`: among them ``config``, the changed training
        settings by name, and ``model``, the changed shape.

    Raises
    ------
    ConfigError
        Naming the file and what is wrong in it.
    CheckpointError
        For a ``minimind.json`` that another version wrote.
    """
    path = Path(path)
    values = _load(path)
    if "stage" in values:
        values = _as_recorded(values, path, stage, resume)
    found: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    try:
        for name, value in values.items():
            if name in ARGUMENTS[stage]:
                found[name] = value
            elif name in SECTIONS:
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name} must be a section of settings")
                for field, inner in value.items():
                    _put(sections, f"{name}.{field}", inner)
            else:
                _put(sections, str(name), value)
        if sections["model"] and stage != "pretrain":
            first = next(iter(sections["model"]))
            raise ConfigError(f"model.{first}: {SHAPE_OF_BASE}")
        # Checked here, where the file can be named.
        TrainConfig(**sections["train"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    check_names(found, path)
    home = path.resolve().parent
    for name in ("base", "tokenizer"):
        if isinstance(found.get(name), str):
            found[name] = os.path.normpath(home / found[name])
    if data := found.get("data"):
        data = [data] if isinstance(data, str) else data
        found["data"] = [
            os.path.normpath(home / one) if is_file_name(str(one)) else one
            for one in data
        ]
    for section, argument in (("model", "model"), ("train", "config")):
        if sections[section]:
            found[argument] = sections[section]
    return {name: v for name, v in found.items() if v is not None}


SHAPE_OF_BASE = "the shape is that of the base model and cannot be set here"


def _put(
    sections: dict[str, dict[str, Any]], name: str, value: Any
) -> None:
    section, field = find_setting(name)
    # YAML 1.1 reads 3e-4 as a string. Where a number is expected, a string
    # is parsed as on the command line.
    if isinstance(value, str):
        value = parse_value(section, field, value)
    sections[section][field] = value


def _as_recorded(
    values: dict[str, Any], path: Path, stage: str, resume: bool
) -> dict[str, Any]:
    """Return the arguments that repeat a recorded run."""
    check_metadata(values, path)
    check_format(values, path)
    found = values["stage"]
    if found != stage:
        other = (
            f"`minimind {found}` repeats it" if found in ARGUMENTS
            else "no training made it"
        )  # fmt: skip
        raise ConfigError(
            f"{path}: describes a folder of the stage {found!r}; {other}"
        )
    if values.get("own_code") and not resume:
        raise ConfigError(
            f"{path}: this run used code of its calling program "
            f"({', '.join(values['own_code'])}), so that only the same "
            "program can repeat it"
        )
    names = (*ARGUMENTS[stage], "train")
    if stage == "pretrain" and not values.get("base"):
        names = (*names, "model")
    kept = {n: values[n] for n in names if values.get(n) is not None}
    if kept.get("preset") not in PRESETS:
        # A custom preset; all of its settings are recorded.
        kept.pop("preset", None)
    if not resume and values.get("runtime"):
        # What "auto" resolved to: results depend on it to the bit.
        kept["train"] = {**kept.get("train", {}), **{
            name: values["runtime"][name]
            for name in ("dtype", "threads")
            if name in values["runtime"]
        }}  # fmt: skip
    return kept


def recorded_settings(run: str | Path, stage: str) -> dict[str, Any]:
    """Return the arguments a run was started with; empty if not begun.

    Raises
    ------
    ConfigError
        If the folder is of another stage.
    CheckpointError
        If another version of the package wrote it.
    """
    path = Path(run) / RUN_FILE
    if not path.exists():
        return {}
    return read_settings(path, stage, resume=True)


# --- settings that suit a model --------------------------------------------


@dataclass(frozen=True)
class Start:
    """The settings that a stage starts from, before any is changed.

    Attributes
    ----------
    config : TrainConfig
    preset : str or None
        The preset whose settings these are.
    about : str
        Description of an imported model, for the log; otherwise empty.
    """

    config: TrainConfig
    preset: str | None = None
    about: str = ""


def nearest_preset(shape: ModelConfig) -> Preset:
    """Return the preset with the most similar number of parameters."""
    size = math.log(shape.num_parameters())
    return min(
        PRESETS.values(),
        key=lambda p: abs(math.log(p.model.num_parameters()) - size),
    )


def same_model(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two models have the same layers and vocabulary.

    The number of positions and the ids of the special tokens are ignored,
    because files of the same model state them differently.
    """
    ignored = {
        "max_position_embeddings": 2, "rms_norm_eps": 1.0,
        "initializer_range": 1.0, "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 0, "rope_theta": 1.0,
    }  # fmt: skip
    return one.replace(**ignored) == other.replace(**ignored)


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of AdamW for a model of unknown origin."""

    pretrain: float
    sft: float

    @property
    def lora(self) -> float:
        """LoRA's rate: ten times the rate of full fine-tuning.

        Schulman et al., "LoRA Without Regret" (Thinking Machines, 2025)
        find this ratio over many models; MiniMind's own scripts have it too.
        """
        return 10 * self.sft


#: MiniMind's own: 1e-5 in trainer/train_full_sft.py, 1e-4 in train_lora.py
#: (commit d65ef2c). Continued pretraining gets a tenth of what its
#: pretraining begins with (5e-4).
UPSTREAM_RATES = Rates(pretrain=5e-5, sft=1e-5)
#: Published rates of fine-tuning go from trl's default of 2e-5, for models
#: of any size, to the 1e-3 of SmolLM2-135M and the 3e-4 of SmolLM2-1.7B
#: (alignment-handbook, recipes/smollm2), which see far more data than most
#: users have. These stay at the careful end: a rate that is too low wastes
#: some steps, and one that is too high wastes the model.
SMALL_RATES = Rates(pretrain=1e-4, sft=5e-5)
LARGE_RATES = Rates(pretrain=5e-5, sft=2e-5)
SMALL = 200e6
"""Parameters up to which a model counts as small here."""
ROOM = 6 * 1024**3
"""Memory, in bytes, that a training step of an imported model may use; the
micro-batch is chosen accordingly."""


def _size(shape: ModelConfig) -> str:
    count = shape.num_parameters()
    return f"{count:,}" if count < 1e6 else f"{count / 1e6:.1f}M"


def suited_settings(shape: ModelConfig, stage: str) -> Start:
    """Return settings for a model that was not trained by this package.

    They are chosen by its size and positions: AdamW at a careful rate, rows
    no longer than its positions, and as many at a time as fit into memory.
    Nothing is replayed, because its training data is unknown.

    Parameters
    ----------
    shape : ModelConfig
    stage : {"pretrain", "sft", "lora"}

    Returns
    -------
    Start
    """
    upstream = same_model(shape, PRESETS["base"].model)
    if upstream:
        rates = UPSTREAM_RATES
    elif shape.num_parameters() <= SMALL:
        rates = SMALL_RATES
    else:
        rates = LARGE_RATES
    config = TrainConfig(
        steps=1000,
        batch_size=32,
        seq_len=min(512, shape.max_position_embeddings),
        optimizer="adamw",
        lr=getattr(rates, stage),
        weight_decay=0.0 if stage == "lora" else 0.1,
        schedule="cosine",
        packed=stage == "pretrain",
        save_every=200,
    )
    rows = min(max(largest_rows(shape, config, ROOM), 1), 16)
    micro = 2 ** int(math.log2(rows))
    return Start(
        config.replace(micro_batch_size=micro),
        about=f"an imported model of {_size(shape)} parameters"
        + (", MiniMind-3's shape" if upstream else ""),
    )


def starting_settings(
    stage: str,
    shape: ModelConfig,
    metadata: Mapping[str, Any],
    preset: str | Preset | None = None,
) -> Start:
    """Return the settings that a stage starts from on a given base.

    Parameters
    ----------
    stage : {"pretrain", "sft", "lora"}
    shape : ModelConfig
        The base's.
    metadata : mapping
        Metadata of the base's folder. If it has no ``preset``, the base is
        an imported model.
    preset : str or Preset, optional
        Takes precedence over the base's own.

    Raises
    ------
    ConfigError
        For an unknown preset.
    """
    known_as = metadata.get("preset")
    if preset is None and known_as:
        # Only the name of a custom preset is known here.
        own = known_as not in PRESETS
        preset = nearest_preset(shape) if own else known_as
    if preset is None:
        return suited_settings(shape, stage)
    chosen = get_preset(preset)
    return Start(getattr(chosen, stage), chosen.name)
