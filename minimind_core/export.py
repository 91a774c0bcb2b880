"""Export to the Hugging Face format, and import from it or MiniMind's.

    from minimind_core.export import export_hf, import_checkpoint
    export_hf("runs/sft", "runs/hf")          # a stock Qwen3ForCausalLM
    import_checkpoint("full_sft_768.pth", "runs/upstream",
                      tokenizer="path/to/minimind/model")

An exported model needs none of our code: `AutoModelForCausalLM` of
transformers, version 4.57 or 5, reads it. An imported model must be complete.
A weights file does not contain the rotary base, the epsilon of the norms, the
number of positions or the tokenizer, and a wrong value of one of these makes
the model worse without an error. They are therefore read from the files
beside it, passed as arguments, or, for MiniMind-3 itself, assumed with a
warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind_core.checkpoint import (
    check_digests,
    load_weights,
    read_weight_file,
    save_model,
    weights_of,
    write_package,
)
from minimind_core.config import PRESETS, ModelConfig
from minimind_core.distributed import in_main_process
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.files import atomic_folder, require_new
from minimind_core.loading import (
    check_tokenizer,
    load_config,
    load_model,
    load_strictly,
)
from minimind_core.model import MiniMind
from minimind_core.run import (
    read_metadata,
    training_data,
    write_metadata,
)
from minimind_core.tokenizer import load_tokenizer, special_ids
from minimind_core.version import __version__

FORMATS = ("safetensors", "bin")
DTYPES = ("float32", "bfloat16", "float16")

UNSEEN = ("rope_theta", "rms_norm_eps", "max_position_embeddings")
"""Settings that affect a model's output or its maximum length, but cannot be
inferred from the shapes of its tensors."""

KEPT = ("data", "trained_on", "seed", "preset", "train")
"""The metadata that `kept` keeps."""


@in_main_process
def export_hf(
    run: str | Path,
    out: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
) -> Path:
    """Export a model in the Hugging Face format.

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
        The dtype in which the weights are stored, and loaded again.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        For an unknown format or dtype.
    CheckpointError
        If `run` holds no complete, undamaged model.
    OutputError
        If `out` exists or cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"unknown format {format!r}; expected one of {', '.join(FORMATS)}"
        )
    if dtype not in DTYPES:
        raise ConfigError(
            f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}"
        )
    out = Path(out)
    require_new(out)
    model, tokenizer = load_model(run)
    metadata = read_metadata(run)
    with atomic_folder(out) as folder:
        write_package(
            folder, model.config, weights_of(model), tokenizer,
            format=format, dtype=dtype,
        )  # fmt: skip
        write_card(folder, out.name, model.config, metadata)
        write_metadata(folder, {**kept(metadata), "stage": "hf"})
    return out


def kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that a derived model keeps."""
    return {name: metadata[name] for name in KEPT if name in metadata}


# --- the model card --------------------------------------------------------

_MADE = {
    "pretrain": "It was pretrained to continue text.",
    "sft": "It was pretrained and then fine-tuned on conversations.",
    "lora": "It was trained with LoRA on top of its base.",
    "merged": "A LoRA adapter was trained on its base and merged into it.",
}

_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""

_LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def write_card(
    folder: Path,
    name: str,
    shape: ModelConfig,
    metadata: Mapping[str, Any],
    *,
    base: str | None = None,
) -> None:
    """Write a model card, ``README.md``, from the recorded metadata.

    Parameters
    ----------
    folder : Path
    name : str
        Name of the model.
    shape : ModelConfig
        Shape of the model, or of the base of an adapter.
    metadata : mapping
        Metadata of the run, from `read_metadata`.
    base : str, optional
        For an adapter: the path of its base relative to its folder.

    Notes
    -----
    The front matter contains no license, because none has been chosen yet,
    and no ``base_model``, because the hub accepts only the names of its own
    models there and the base is a folder.
    """
    from huggingface_hub import ModelCardData

    adapter = base is not None
    front = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["minimind", "qwen3", *(["lora"] if adapter else [])],
    )
    shown = (
        f"{shape.num_hidden_layers} layers of width {shape.hidden_size}, "
        f"{shape.vocab_size} rows of embeddings and up to "
        f"{shape.max_position_embeddings} positions"
    )
    if adapter:
        first = (
            f"A LoRA adapter in the format of peft. Its base, `{base}` as "
            "seen from this folder, is a `Qwen3ForCausalLM` with "
            f"{shape.num_parameters():,} parameters: {shown}."
        )
    else:
        first = (
            f"A causal language model with {shape.num_parameters():,} "
            f"parameters: {shown}. It is stored as `Qwen3ForCausalLM`."
        )
    load = (_LOAD_ADAPTER if adapter else _LOAD_MODEL).format(
        name=name, base=base
    )
    text = f"""---
{front.to_yaml()}
---

# {name}

{first}

## How it was made

{_how_it_was_made(metadata)}
It was written by minimind-core {__version__}.

## How to load it

```python
{load}
```

## What is not stated here

No license has been chosen and no evaluation is recorded. Add both before
you publish it: `license: ...` belongs in the lines at the top, and
`minimind eval` measures the loss on data that you name.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _how_it_was_made(metadata: Mapping[str, Any]) -> str:
    stage = str(metadata.get("stage", ""))
    if "source" in metadata:
        made = f"It was imported from `{metadata['source']}`."
    else:
        made = _MADE.get(stage, "How it was trained is not recorded.")
    lines = [made, ""]
    # Names only: a path would reveal details of the training machine.
    stages = training_data(metadata)
    for number, stage_data in enumerate(stages, 1):
        names = ", ".join(Path(str(one)).name for one in stage_data)
        title = "Data" if len(stages) == 1 else f"Data of training {number}"
        lines.append(f"- {title}: {names}")
    train = metadata.get("train") or {}
    shown = [
        f"{key} {train[key]}"
        for key in ("steps", "batch_size", "seq_len", "optimizer", "lr",
                    "seed")
        if key in train
    ]  # fmt: skip
    if shown:
        lines.append(f"- Settings of the last training: {', '.join(shown)}")
    return "\n".join([*lines, ""] if len(lines) > 2 else lines)


# --- import ----------------------------------------------------------------


@in_main_process
def import_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    rope_theta: float | None = None,
    rms_norm_eps: float | None = None,
    max_position_embeddings: int | None = None,
    spare_rows: bool = False,
) -> Path:
    """Import a third-party model as a run folder.

    Parameters
    ----------
    source : path
        A folder with a dense Qwen3 model in the Hugging Face format; or a
        file of weights, such as MiniMind's own ``.pth``, whose shape is
        inferred from its tensors. From a training checkpoint only the model
        is read, and the prefixes of ``DistributedDataParallel`` and
        ``torch.compile`` are removed, however they are nested.
    out : path
        The new run folder.
    tokenizer : path, optional
        The tokenizer's folder. By default, the tokenizer in the folder, or
        beside the file, is used.
    rope_theta, rms_norm_eps, max_position_embeddings : number, optional
        Settings that a file of weights does not contain. By default they are
        read from the ``config.json`` beside it. If there is none, a model of
        exactly MiniMind-3's shape gets MiniMind's values, with a warning;
        for any other model, `rope_theta` must be given.
    spare_rows : bool
        Accept a tokenizer with far fewer tokens than the embedding has
        rows; see `check_tokenizer`.

    Returns
    -------
    Path
        `out`. Its ``minimind.json`` records what was assumed.

    Raises
    ------
    CheckpointError
        If the model is of another kind, damaged or incomplete, or if the
        tokenizer does not fit it.
    OutputError
        If `out` exists.

    Warns
    -----
    UserWarning
        If any of these settings had to be assumed.
    """
    source, out = Path(source), Path(out)
    require_new(out)
    values = (rope_theta, rms_norm_eps, max_position_embeddings)
    given = {
        name: float(value) if name != "max_position_embeddings" else value
        for name, value in zip(UNSEEN, values, strict=True)
        if value is not None
    }
    assumed: dict[str, Any] = {}
    if source.is_dir():
        # Checks that the two fit, before anything is built of them.
        state = dict(load_strictly(source).state_dict())
        check_digests(source)
        config = load_config(source)
        home = _tokenizer_folder(tokenizer, source)
    else:
        state = _plain_names(read_weight_file(source), str(source))
        shape = infer_config(state, str(source))
        home = _tokenizer_folder(tokenizer, source.parent)
        config, assumed = _add_unseen(shape, source, given)
    try:
        config = config.replace(**given)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    tok = load_tokenizer(home)
    check_tokenizer(tok, config, str(home), spare_rows=spare_rows)
    if not source.is_dir():
        config = _with_special_tokens(config, tok)
    model = MiniMind(config)
    load_weights(model, state, str(source))
    metadata = read_metadata(source) if source.is_dir() else {}
    with atomic_folder(out) as folder:
        save_model(model, tok, folder)
        said = {"stage": "import", "source": source.name}
        write_metadata(
            folder,
            {**kept(metadata), **said, **({"assumed": assumed} if assumed
                                          else {})},
        )  # fmt: skip
    if assumed:
        told = ", ".join(f"{k} {v:g}" for k, v in assumed.items())
        warnings.warn(
            f"{source.name} does not say, so MiniMind's own values are "
            f"assumed: {told}; if that is wrong, import it again with "
            "--rope-theta, --rms-norm-eps or --max-positions",
            stacklevel=2,
        )
    return out


def _tokenizer_folder(given: str | Path | None, beside: Path) -> Path:
    file = beside / "tokenizer.json"
    if given is None and not file.exists():
        raise CheckpointError(
            f"{file}: no such file; name the folder of the tokenizer that "
            "the model was trained with (--tokenizer)"
        )
    return beside if given is None else Path(given)


def _add_unseen(
    shape: ModelConfig, source: Path, given: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Add the settings that tensors do not show; also return assumptions."""
    beside = source.parent / "config.json"
    if beside.exists():
        told = load_config(source.parent)
        differs = [
            f"{name} is {getattr(told, name)}, not {getattr(shape, name)}"
            for name in (
                "vocab_size", "hidden_size", "num_hidden_layers",
                "num_attention_heads", "num_key_value_heads", "head_dim",
                "intermediate_size",
            )
            if getattr(told, name) != getattr(shape, name)
        ]  # fmt: skip
        if not differs:
            tied = shape.tie_word_embeddings
            return told.replace(tie_word_embeddings=tied), {}
        if "rope_theta" not in given:
            raise CheckpointError(
                f"{beside}: describes another model than {source.name} "
                f"({'; '.join(differs)}); move one of them elsewhere, or "
                "give --rope-theta"
            )
    known = shape.replace(tie_word_embeddings=True) == PRESETS["base"].model
    if "rope_theta" not in given and not known:
        raise CheckpointError(
            f"{source}: the weights do not show with which rotary base they "
            "were trained, and there is no config.json beside them; "
            "give --rope-theta (MiniMind's own training and the presets "
            "small and base use 1e6, the preset tiny uses 1e4)"
        )
    assumed = {
        name: getattr(shape, name) for name in UNSEEN if name not in given
    }
    return shape, assumed


def _with_special_tokens(config: ModelConfig, tok: Any) -> ModelConfig:
    """Add the tokenizer's special ids, which tensors do not show either."""
    bos, eos, pad = special_ids(tok)
    return config.replace(
        bos_token_id=bos, eos_token_id=eos, pad_token_id=pad
    )


_WRAPPERS = ("module", "_orig_mod")


def _plain_names(
    state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, and RoPE's tables.

    ``DistributedDataParallel`` adds ``module.`` and ``torch.compile`` adds
    ``_orig_mod.``; they may be nested. MiniMind saves RoPE's tables in some
    files; here they are computed.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        if parts[-1:] in (["freqs_cos"], ["freqs_sin"]):
            continue
        short = ".".join(parts)
        if short in plain:
            raise CheckpointError(
                f"{where}: contains {short} twice, with and without a prefix"
            )
        plain[short] = tensor
    return plain


def infer_config(state: Mapping[str, Tensor], where: str) -> ModelConfig:
    """Infer a dense model's config from the shapes of its tensors.

    The settings in `UNSEEN`, which cannot be inferred, get MiniMind-3's
    values.

    Parameters
    ----------
    state : mapping of str to Tensor
    where : str
        Named in errors.

    Raises
    ------
    CheckpointError
        For MiniMind's mixture of experts, a LoRA adapter, MiniMind's models
        before version 3 (which had no QK-norm), and any other model that
        does not have Qwen3's shape.
    """
    if any(".experts." in name for name in state):
        raise CheckpointError(
            f"{where}: a mixture of experts; only dense models can be read"
        )
    if any(".lora." in name or ".lora_A." in name for name in state):
        raise CheckpointError(
            f"{where}: contains a LoRA adapter, which is only an addition to "
            "a model; merge it into its base first (MiniMind: "
            "convert_merge_base_lora in scripts/convert_model.py; peft: "
            "merge_and_unload), and import the result"
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
            tie_word_embeddings=tied,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
