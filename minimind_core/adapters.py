"""LoRA through peft: adapters in files that other tools read.

    from minimind_core import merge_lora, train_lora
    train_lora("runs/hf", "runs/lora")         # on an exported folder
    merge_lora("runs/lora", "runs/merged")     # a plain model again

What is trained, and how, is the recipe `minimind_core.recipes.train_lora`.
Here an adapter is put on a model, written, and added to its base.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimind_core.checkpoint import weights_of, write_package
from minimind_core.config import ModelConfig
from minimind_core.distributed import in_main_process
from minimind_core.errors import ConfigError
from minimind_core.export import kept, write_card
from minimind_core.files import (
    atomic_folder,
    read_json,
    require_new,
    write_json,
    writing,
)
from minimind_core.loading import (
    ADAPTER_CONFIG,
    import_peft,
    load_config,
    load_hf_model,
    load_merged,
)
from minimind_core.lora import ALL_LINEAR, TIED, refuse_tied
from minimind_core.run import read_metadata, write_metadata
from minimind_core.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check_targets(
    targets: str | Sequence[str], shape: ModelConfig
) -> None:
    """Refuse layers that do not exist or must not be adapted.

    Raises
    ------
    ConfigError
    """
    if isinstance(targets, str):
        return
    refuse_tied(targets, shape)
    if unknown := sorted(set(targets) - {*ALL_LINEAR, *TIED}):
        raise ConfigError(
            f"no layer is named {', '.join(unknown)}; there is "
            f"{', '.join(ALL_LINEAR)}"
        )


def add_adapter(
    base: str | Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all-linear",
    dropout: float = 0.0,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> Any:
    """A stock model with a new adapter on it.

    Parameters
    ----------
    base : path
        A Hugging Face folder.
    rank, alpha, targets, dropout, use_rslora, use_dora
        See `peft.LoraConfig`.

    Returns
    -------
    peft.PeftModel
        Only the adapter is trainable. Its initial weights are drawn from
        torch's global generator.

    Raises
    ------
    CheckpointError
        If the folder holds no sound model.
    """
    with import_peft() as peft:
        adapter = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=targets if isinstance(targets, str)
            else list(targets),
            use_rslora=use_rslora,
            use_dora=use_dora,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        return peft.get_peft_model(load_hf_model(base), adapter)


def save_adapter(
    model: Any,
    tok: PreTrainedTokenizerFast,
    base: Path,
    out: Path,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter as peft does, with its tokenizer and a model card.

    Parameters
    ----------
    model : peft.PeftModel
    tok : PreTrainedTokenizerFast
    base : Path
        The folder of its base. It is named relative to `out`, so that both
        can be moved together.
    out : Path
        An existing folder.
    metadata : mapping, optional
        Of the run, for the model card.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(out):
        # The base's tied weights do not belong to the adapter.
        model.save_pretrained(out, save_embedding_layers=False)
    save_tokenizer(tok, out)
    path = out / ADAPTER_CONFIG
    described = read_json(path)
    nearby = Path(os.path.relpath(base.resolve(), out.resolve())).as_posix()
    described["base_model_name_or_path"] = nearby
    write_json(path, described)
    with writing(out):
        # In place of peft's own card, which is a form to be filled in.
        write_card(
            out, out.name, load_config(base), metadata or {}, base=nearby
        )


@in_main_process
def merge_lora(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
) -> Path:
    """Add an adapter to its base: a plain model that needs no peft.

    Parameters
    ----------
    adapter : path
    out : path
        The new Hugging Face folder.
    base : path, optional
        The base's folder, where it is not where the adapter says.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    CheckpointError, OutputError
    """
    adapter, out = Path(adapter), Path(out)
    require_new(out)
    model, tok = load_merged(adapter, base=base)
    metadata = {**read_metadata(adapter), "stage": "merged"}
    with atomic_folder(out) as folder:
        write_package(folder, model.config, weights_of(model), tok)
        write_card(folder, out.name, model.config, metadata)
        write_metadata(folder, kept(metadata) | {"stage": "merged"})
    return out
