"""One way to open a model folder, whatever it holds.

    from minimind_core.loading import load_model
    model, tokenizer = load_model("runs/sft")       # a run
    model, tokenizer = load_model("runs/hf")        # a Hugging Face folder
    model, tokenizer = load_model("runs/lora")      # an adapter on its base

A run folder is a Hugging Face folder with more in it, so the two are read in
the same way. An adapter is added to its base in memory. `load_adapter` keeps
the two apart, as peft does, and `load_hf_model` gives a folder as the class
of transformers that it is stored for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.checkpoint import (
    CHECKPOINTS,
    load_weights,
    read_weights,
)
from minimind_core.config import ModelConfig
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.files import read_json
from minimind_core.model import MiniMind
from minimind_core.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADAPTER_CONFIG = "adapter_config.json"


def load_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in a folder.

    Raises
    ------
    CheckpointError
        If the folder holds no model; an adapter folder is told apart.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise CheckpointError(
                f"{folder}: a LoRA adapter, not a whole model; make one with "
                f"`minimind merge {folder} --out ...`"
            )
        partial = (folder / CHECKPOINTS).exists()
        raise CheckpointError(
            f"{folder}: "
            + (
                "this run has not finished; continue it with --resume"
                if partial
                else "no config.json, so not a model folder"
            )
        )
    path = folder / "config.json"
    try:
        return ModelConfig.from_hf(read_json(path), str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_model(
    folder: str | Path, device: str = "cpu"
) -> tuple[MiniMind, PreTrainedTokenizerFast]:
    """Open any model folder: a run, a Hugging Face folder or an adapter.

    Parameters
    ----------
    folder : path
        An adapter is added to its base in memory; see `load_merged`.
    device : str

    Returns
    -------
    model : MiniMind
        In float32 and evaluation mode.
    tokenizer : PreTrainedTokenizerFast

    Raises
    ------
    CheckpointError
        If anything is missing, damaged or does not fit.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).exists():
        return load_merged(folder, device=device)
    config = load_config(folder)
    state = read_weights(folder)
    model = MiniMind(config)
    load_weights(model, state, str(folder))
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model "
            f"only {config.vocab_size}"
        )
    return model.to(device).eval(), tokenizer


# --- adapters, through peft ------------------------------------------------


@contextmanager
def import_peft() -> Iterator[Any]:
    """Import peft, and explain the one way in which that often fails."""
    import peft

    try:
        yield peft
    except ImportError as error:
        if "torchao" not in str(error):
            raise
        raise ConfigError(
            "peft refuses the old torchao that is installed here (Colab "
            "brings it); remove it with: pip uninstall -y torchao"
        ) from error


def load_hf_model(folder: str | Path, device: str = "cpu") -> Any:
    """An exported folder as a stock `Qwen3ForCausalLM`, in float32.

    Raises
    ------
    CheckpointError
        If anything is missing, damaged or does not fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = Path(folder)
    # Read strictly first: where a tensor is missing, transformers starts
    # with a random one and only reports it.
    strict = MiniMind(load_config(folder))
    load_weights(strict, read_weights(folder), str(folder))
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder.resolve()), dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: {reason}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device)


def adapter_base(adapter: str | Path, base: str | Path | None = None) -> Path:
    """The folder of the model an adapter belongs to.

    Raises
    ------
    CheckpointError
        If it is not where the adapter says.
    """
    adapter = Path(adapter)
    path = adapter / ADAPTER_CONFIG
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, so no adapter here")
    if base is not None:
        return Path(base)
    named = read_json(path).get("base_model_name_or_path") or ""
    found = adapter / named
    if not (found / "config.json").exists():
        raise CheckpointError(
            f"{path}: its base {named!r} is not there; name the exported "
            "folder it was trained on (--base)"
        )
    return found


def load_adapter(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
) -> tuple[Any, PreTrainedTokenizerFast]:
    """An adapter on its base, as a peft model.

    Returns
    -------
    model : peft.PeftModel
    tokenizer : PreTrainedTokenizerFast

    Raises
    ------
    CheckpointError
        If the adapter or its base is missing or damaged.
    """
    adapter = Path(adapter)
    folder = adapter_base(adapter, base)
    with import_peft() as peft:
        try:
            model = peft.PeftModel.from_pretrained(
                load_hf_model(folder), str(adapter)
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{adapter}: {reason}") from error
        except Exception as error:
            if "safetensor" not in type(error).__name__.lower():
                raise
            raise CheckpointError(
                f"{adapter}: damaged or cut short ({error})"
            ) from error
    return model.to(device).eval(), load_tokenizer(adapter)


def load_merged(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
) -> tuple[MiniMind, PreTrainedTokenizerFast]:
    """An adapter added to its base in memory, as a `MiniMind`.

    Returns
    -------
    model : MiniMind
        In float32 and evaluation mode.
    tokenizer : PreTrainedTokenizerFast

    Raises
    ------
    CheckpointError
        If the adapter or its base is missing or damaged.
    """
    adapted, tok = load_adapter(adapter, base=base)
    model = MiniMind(load_config(adapter_base(adapter, base)))
    state = adapted.merge_and_unload().state_dict()
    load_weights(model, state, str(adapter))
    return model.to(device).eval(), tok
