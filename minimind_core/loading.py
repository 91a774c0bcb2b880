"""Load models from any kind of model folder.

    from minimind_core.loading import load_model
    model, tokenizer = load_model("runs/sft")       # a run
    model, tokenizer = load_model("runs/hf")        # a Hugging Face folder
    model, tokenizer = load_model("runs/lora")      # an adapter on its base
    model, tokenizer = load_model("runs/merged")    # an adapter, merged

A run folder is a Hugging Face folder with additional files, so the two are
read in the same way. An adapter is merged into its base in memory, which
gives the model that `merge_lora` would write. To keep the adapter separate,
so that it can be switched off or trained further, `load_adapter` returns
peft's model instead. `load_hf_model` returns the model as a class of
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.attention import fit_attention
from minimind_core.checkpoint import (
    CHECKPOINTS,
    RUN_FILE,
    check_digests,
    check_format,
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
SPARE_ROWS = 128
"""Number of unused rows that an embedding may have as padding."""


def load_config(folder: str | Path) -> ModelConfig:
    """Read the config of the model in a folder.

    Raises
    ------
    CheckpointError
        If the folder holds no model that can be read, or was written by
        another version of the package. The message says what it holds
        instead and what to do about it.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: {_why_no_model(folder)}")
    try:
        require_known_format(folder)
        return ModelConfig.from_hf(read_json(path), str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def require_known_format(folder: Path) -> None:
    """Raise an error if another version of the package wrote a folder.

    Raises
    ------
    CheckpointError
        If the folder's ``minimind.json`` has another format.
    """
    path = folder / RUN_FILE
    if path.is_file():
        check_format(read_json(path), path)


def _why_no_model(folder: Path) -> str:
    """Explain why a path is not a model folder, and what to do."""
    if folder.is_file():
        return (
            "a file, not a model folder; make one of a weights file with "
            f"`minimind import {folder} --out ...`"
        )
    if not folder.is_dir():
        if re.fullmatch(r"[\w-]+/[\w.-]+", str(folder)):
            return (
                "no such folder; a model of the Hugging Face hub is opened "
                f"from a copy: hf download {folder} --local-dir DIR"
            )
        return "no such folder"
    if (folder / ADAPTER_CONFIG).exists():
        return (
            "a LoRA adapter, not a whole model; make one with "
            f"`minimind merge {folder} --out ...`"
        )
    if (folder / CHECKPOINTS).exists():
        return "this run has not finished; continue it with --resume"
    if (folder / "training.pt").exists():
        return (
            "a checkpoint of a run; continue the run with --resume, or open "
            f"{folder.parent.parent} once it is finished"
        )
    inner = sorted(
        path.name
        for path in folder.iterdir()
        if (path / "config.json").exists()
        or (path / ADAPTER_CONFIG).exists()
    )
    if inner:
        return f"not a model folder itself; in it are {', '.join(inner)}"
    if (folder / "tokenizer.json").exists():
        return "a tokenizer without a model (there is no config.json)"
    return "no config.json, so not a model folder"


def load_model(
    folder: str | Path, device: str = "cpu"
) -> tuple[MiniMind, PreTrainedTokenizerFast]:
    """Open any model folder: a run, a Hugging Face folder or an adapter.

    Parameters
    ----------
    folder : path
        An adapter is merged into its base in memory; see `load_merged`.
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
    model = load_strictly(folder)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, model.config, str(folder))
    check_digests(folder)
    return model.to(device).eval(), tokenizer


def load_strictly(folder: Path) -> MiniMind:
    """Build the model of a folder and load exactly its weights.

    Raises
    ------
    CheckpointError
        If anything is missing, damaged or does not fit.
    """
    config, state = load_config(folder), read_weights(folder)
    found = sum(tensor.numel() for tensor in state.values())
    if config.num_parameters() > 10 * found + 10**7:
        # A model of that size might not even fit into the memory.
        raise CheckpointError(
            f"{folder}: the weights do not fit the config, which describes "
            f"{config.num_parameters():,} parameters; there are {found:,}"
        )
    model = MiniMind(config)
    load_weights(model, state, str(folder))
    return model


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    config: ModelConfig,
    where: str,
    *,
    spare_rows: bool = True,
) -> None:
    """Raise an error if a tokenizer does not fit the model's embedding.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    config : ModelConfig
    where : str
        The tokenizer's folder, for errors.
    spare_rows : bool
        Whether the embedding may have any number of rows that no token
        uses. If not, `SPARE_ROWS` of them or 1% are allowed, because
        embeddings are often padded to a size that suits the hardware: for
        example, Qwen3 has 151,936 rows for 151,669 tokens. More unused
        rows suggest that the tokenizer belongs to another model.

    Raises
    ------
    CheckpointError
    """
    tokens, rows = len(tokenizer), config.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokens} tokens, the model only "
            f"{rows} rows of embeddings; name the tokenizer that the model "
            "was trained with"
        )
    if not spare_rows and rows - tokens > max(SPARE_ROWS, rows // 100):
        raise CheckpointError(
            f"{where}: the tokenizer has {tokens} tokens, the model {rows} "
            "rows of embeddings, so they hardly belong together; name the "
            "tokenizer that the model was trained with, or allow unused "
            "rows with --spare-rows"
        )


# --- adapters, through peft ------------------------------------------------


@contextmanager
def import_peft() -> Iterator[Any]:
    """Import peft, and explain the most common failure."""
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
    """Load an exported folder as a `Qwen3ForCausalLM` in float32.

    Raises
    ------
    CheckpointError
        If anything is missing, damaged or does not fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder = Path(folder)
    # Read strictly first, because transformers replaces a missing tensor
    # by a random one and only logs it.
    load_strictly(folder)
    check_digests(folder)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder.resolve()), dtype=torch.float32
        )
    except Exception as error:  # a damaged config can raise anything
        raise CheckpointError(f"{folder}: {_reason(error)}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    model = model.to(device)
    fit_attention(model)
    return model


def _reason(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).splitlines() or [repr(error)])[0][:200]


def adapter_base(adapter: str | Path, base: str | Path | None = None) -> Path:
    """Return the folder of the base model that an adapter belongs to.

    Parameters
    ----------
    adapter : path
    base : path, optional
        The folder, if it is already known.

    Raises
    ------
    CheckpointError
        If the base is not where the adapter's config says.
    """
    adapter = Path(adapter)
    path = adapter / ADAPTER_CONFIG
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, so no adapter here")
    if base is not None:
        return Path(base)
    try:
        named = read_json(path).get("base_model_name_or_path") or ""
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(named, str) or "\0" in named:
        raise CheckpointError(
            f"{path}: base_model_name_or_path must be a name, not {named!r}"
        )
    # We store a path relative to the adapter; other tools store one relative
    # to their working directory, or an absolute one.
    for found in (adapter / named, Path(named)):
        if named and (found / "config.json").exists():
            return found
    raise CheckpointError(
        f"{path}: its base {named!r} is not there; name the folder of the "
        "model it was trained on with --base (one of the Hugging Face hub "
        "must be downloaded first)"
    )


def _check_adapter(adapter: Path) -> None:
    """Refuse an adapter that is no LoRA, or whose config names code."""
    path = adapter / ADAPTER_CONFIG
    try:
        about = read_json(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if about.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {about.get('peft_type')!r}; only 'LORA' "
            "adapters can be read"
        )
    if about.get("megatron_config"):
        # peft would import whatever module `megatron_core` names.
        raise CheckpointError(
            f"{path}: megatron_config names code to import, which is not "
            "done; remove it"
        )


def load_adapter(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Load an adapter on its base, as a peft model.

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
    require_known_format(adapter)
    folder = adapter_base(adapter, base)
    _check_adapter(adapter)
    with import_peft() as peft:
        try:
            model = peft.PeftModel.from_pretrained(
                load_hf_model(folder), str(adapter)
            )
        except CheckpointError:
            raise
        except Exception as error:  # likewise
            if isinstance(error, ImportError) and "torchao" in str(error):
                raise
            raise CheckpointError(
                f"{adapter}: damaged or cut short ({_reason(error)})"
            ) from error
    # Adapters from other tools may come without a tokenizer.
    own = (adapter / "tokenizer.json").exists()
    tokenizer = load_tokenizer(adapter if own else folder)
    check_digests(adapter)
    model = model.to(device).eval()
    fit_attention(model)
    return model, tokenizer


def load_merged(
    adapter: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
) -> tuple[MiniMind, PreTrainedTokenizerFast]:
    """Load an adapter merged into its base, as a `MiniMind`.

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
    try:
        state = adapted.merge_and_unload().state_dict()
    except Exception as error:  # a damaged config can raise anything
        raise CheckpointError(
            f"{adapter}: cannot be merged ({_reason(error)})"
        ) from error
    load_weights(model, state, str(adapter))
    return model.to(device).eval(), tok
