"""Out to the Hugging Face format and back in, MiniMind's own file included.

    from minimind_core.export import export_hf, import_checkpoint
    export_hf("runs/sft", "runs/hf")          # a stock Qwen3ForCausalLM
    import_checkpoint("full_sft_768.pth", "runs/upstream",
                      tokenizer="path/to/minimind/model")

What is written needs no code of ours: `AutoModelForCausalLM` reads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimind_core.checkpoint import (
    OLD_WEIGHTS,
    WEIGHTS,
    generation_config,
    load_weights,
    read_weight_file,
    save_model,
    weights_of,
)
from minimind_core.config import ModelConfig
from minimind_core.distributed import in_main_process
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.files import atomic_folder, require_new, write_json
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.run import read_metadata, write_metadata
from minimind_core.tokenizer import load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMATS = ("safetensors", "bin")
DTYPES = ("float32", "bfloat16", "float16")
UPSTREAM_THETA = 1e6


@in_main_process
def export_hf(
    run: str | Path,
    out: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
) -> Path:
    """Write a model as a Hugging Face package.

    Parameters
    ----------
    run : path
        A run folder.
    out : path
        The new folder.
    format : {"safetensors", "bin"}
        ``model.safetensors``; or ``pytorch_model.bin``, the older layout
        of MiniMind's first releases, a pickle.
    dtype : {"float32", "bfloat16", "float16"}
        What the weights are stored in, and loaded in again.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        For an unknown format or dtype.
    CheckpointError
        If `run` holds no sound model.
    OutputError
        If `out` exists or cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"unknown format {format!r}; there is {', '.join(FORMATS)}"
        )
    if dtype not in DTYPES:
        raise ConfigError(
            f"unknown dtype {dtype!r}; there is {', '.join(DTYPES)}"
        )
    out = Path(out)
    require_new(out)
    model, tokenizer = load_model(run)
    facts = read_metadata(run)
    with atomic_folder(out) as folder:
        write_package(
            folder, model.config, weights_of(model), tokenizer,
            format=format, dtype=dtype,
        )  # fmt: skip
        write_metadata(
            folder,
            {
                **{k: facts[k] for k in ("data", "seed", "preset")
                   if k in facts},
                "stage": "hf",
            },
        )  # fmt: skip
    return out


def write_package(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
) -> None:
    """The files of a Hugging Face package, into an existing folder.

    Parameters
    ----------
    folder : Path
    config : ModelConfig
    state : dict of str to Tensor
    tokenizer : PreTrainedTokenizerFast
    format, dtype : str
        See `export_hf`.
    """
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    state = {name: t.to(kind).contiguous() for name, t in state.items()}
    if format == "bin":
        # transformers 5 writes no such file any more, but still reads it.
        torch.save(state, folder / OLD_WEIGHTS)
    else:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    described = {**config.to_hf(), "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / "config.json", described)
    write_json(folder / "generation_config.json", generation_config(config))
    save_tokenizer(tokenizer, folder)


# --- back in ---------------------------------------------------------------


@in_main_process
def import_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
) -> Path:
    """Make a run folder of a model from elsewhere.

    Parameters
    ----------
    source : path
        A folder with a dense Qwen3 model in the Hugging Face format, or a
        file of MiniMind's own (``.pth``: a state dict, usually in half
        precision), whose shape is read off its tensors.
    out : path
        The new run folder.
    tokenizer : path, optional
        The tokenizer's folder; needed with a file, which has none.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    CheckpointError
        If the model is of another kind, damaged, or does not fit the
        tokenizer.
    OutputError
        If `out` exists.
    """
    source, out = Path(source), Path(out)
    require_new(out)
    if source.is_dir():
        model, tok = load_model(source)
        if tokenizer is not None:
            tok = load_tokenizer(tokenizer)
    else:
        state = read_weight_file(source)
        if tokenizer is None:
            raise CheckpointError(
                f"{source}: a weights file has no tokenizer in it; name the "
                "folder of the one it was trained with (--tokenizer)"
            )
        tok = load_tokenizer(tokenizer)
        model = _from_state(state, source)
    if len(tok) > model.config.vocab_size:
        raise CheckpointError(
            f"{tokenizer or source}: the tokenizer has {len(tok)} tokens, "
            f"the model only {model.config.vocab_size}"
        )
    with atomic_folder(out) as folder:
        save_model(model, tok, folder)
        write_metadata(folder, {"stage": "import", "source": source.name})
    return out


def _from_state(state: dict[str, Tensor], source: Path) -> MiniMind:
    # MiniMind saves RoPE's tables with some files; they are computed here.
    state = {
        name.removeprefix("_orig_mod.").removeprefix("module."): tensor
        for name, tensor in state.items()
        if not name.endswith(("freqs_cos", "freqs_sin"))
    }
    config = infer_config(state, str(source))
    model = MiniMind(config)
    load_weights(model, state, str(source))
    return model


def infer_config(state: dict[str, Tensor], where: str) -> ModelConfig:
    """Read a dense model's shape off its tensors.

    The rotary base cannot be seen in them: MiniMind's, 1e6, is taken.

    Parameters
    ----------
    state : dict of str to Tensor
    where : str
        Named in errors.

    Raises
    ------
    CheckpointError
        For MiniMind's mixture of experts, its models before version 3
        (which had no QK-norm), and whatever is no Qwen3 shape.
    """
    if any(".experts." in name for name in state):
        raise CheckpointError(
            f"{where}: a mixture of experts; only dense models can be read"
        )
    first = "model.layers.0."
    needed = {
        "embedding": "model.embed_tokens.weight",
        "queries": first + "self_attn.q_proj.weight",
        "keys": first + "self_attn.k_proj.weight",
        "query norm": first + "self_attn.q_norm.weight",
        "gate": first + "mlp.gate_proj.weight",
    }
    missing = [name for name in needed.values() if name not in state]
    if missing:
        raise CheckpointError(
            f"{where}: no {missing[0]}, so not a model of MiniMind-3's shape"
        )
    shape = {part: state[name].shape for part, name in needed.items()}
    layers = {
        int(found.group(1))
        for name in state
        if (found := re.match(r"model\.layers\.(\d+)\.", name))
    }
    head = shape["query norm"][0]
    embedding = state["model.embed_tokens.weight"]
    output = state.get("lm_head.weight")
    tied = output is None or torch.equal(output, embedding)
    try:
        return ModelConfig(
            vocab_size=shape["embedding"][0],
            hidden_size=shape["embedding"][1],
            num_hidden_layers=max(layers) + 1,
            num_attention_heads=shape["queries"][0] // head,
            num_key_value_heads=shape["keys"][0] // head,
            head_dim=head,
            intermediate_size=shape["gate"][0],
            rope_theta=UPSTREAM_THETA,
            tie_word_embeddings=tied,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
