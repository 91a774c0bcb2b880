"""The trained models in the pages: what the scripts in the browser load.

    from minimind_core.book.lab import describe_stage, write_stage
    stage = describe_stage(get_stage("sft"))
    write_stage("sft", stage, "_build/html/_static/lab/sft.js")

The engine itself is JavaScript and lies in ``book/_static/lab``. A page that
is opened as a file may load scripts, but neither modules nor data, so
everything is written as a plain script: the engine as one bundle, each
model as a call that hands its data to the engine, and the microworld too.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.checkpoint import weights_of
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.files import read_json
from minimind_core.loading import (
    ADAPTER_CONFIG,
    adapter_base,
    load_model,
)
from minimind_core.microworld import HELD_OUT_SEED, write_story
from minimind_core.microworld.tape import read_data
from minimind_core.model import MiniMind
from minimind_core.tokenizer import encode_document

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

SCRIPTS = (
    "linear.js", "engine.js", "tokenizer.js", "weights.js", "sampling.js",
    "world.js", "questions.js", "xray.js",
)  # fmt: skip
"""The parts of the engine; each imports only from those before it."""
GLOBAL = "MiniMindLab"
CHECKED = 50


FORMATS = ("float16", "int8")


def describe_stage(
    folder: str | Path, format: str = "float16"
) -> dict[str, Any]:
    """What the engine needs to run the model in a folder.

    Parameters
    ----------
    folder : path
        A run or an exported model; of an adapter's folder the base is
        described, with the adapter beside it.
    format : {"float16", "int8"}
        How the weights are stored. In int8 a matrix takes half the room:
        each of its rows has a scale of its own, in float32.

    Returns
    -------
    dict
        ``config``, ``tokenizer``, ``weights`` (a safetensors file, as
        base64), ``adapter`` where there is one, always in float16, and
        ``error``, see `format_error`.

    Raises
    ------
    CheckpointError
        If there is no model, or one that float16 cannot hold.
    ConfigError
        If the adapter is more than plain LoRA, or the format unknown.
    """
    folder = Path(folder)
    adapter = None
    if (folder / ADAPTER_CONFIG).exists():
        adapter = _adapter(folder)
        folder = adapter_base(folder)
    model, tokenizer = load_model(folder)
    stage = describe_model(model, tokenizer, format)
    if adapter is not None:
        stage["adapter"] = adapter
    return stage


def describe_model(
    model: MiniMind,
    tokenizer: PreTrainedTokenizerFast,
    format: str = "float16",
) -> dict[str, Any]:
    """The same as `describe_stage` for a model in memory, unadapted."""
    if format not in FORMATS:
        raise ConfigError(
            f"the format must be one of {', '.join(FORMATS)}, not {format!r}"
        )
    config = model.config
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = sorted(parts["model"]["vocab"].items(), key=lambda pair: pair[1])
    return {
        "config": {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_width,
            "intermediate_size": config.ffn_width,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "tokenizer": {
            "model": {
                "vocab": dict(vocab),
                "merges": parts["model"]["merges"],
            },
            "added_tokens": [
                {"id": token["id"], "content": token["content"]}
                for token in parts["added_tokens"]
            ],
            "pre_tokenizer": parts["pre_tokenizer"],
            "normalizer": parts["normalizer"],
        },
        "weights": _packed(weights_of(model), format),
        "error": format_error(model, tokenizer, format),
    }


def _packed(tensors: dict[str, Tensor], format: str) -> str:
    """Tensors as a safetensors file in base64."""
    from safetensors.torch import save

    packed = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if format == "int8" and tensor.ndim == 2:
            packed[name], packed[f"{name}.scale"] = _quantised(tensor)
            continue
        packed[name] = tensor.to(torch.float16).contiguous()
        if not bool(packed[name].isfinite().all()):
            raise CheckpointError(f"{name}: too large for float16")
    return base64.b64encode(save(packed)).decode("ascii")


def _quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and what a 1 is worth in each row."""
    scale = matrix.float().abs().amax(1).clamp(min=1e-12) / 127
    return (matrix / scale[:, None]).round().to(torch.int8), scale


def _rounded(tensor: Tensor, format: str) -> Tensor:
    """A tensor as the engine gets it."""
    if format == "int8" and tensor.ndim == 2:
        whole, scale = _quantised(tensor)
        return whole * scale[:, None]
    return tensor.to(torch.float16).float()


def _adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    config = read_json(folder / ADAPTER_CONFIG)
    more = [
        name
        for name in (
            "use_dora", "use_rslora", "rank_pattern", "alpha_pattern",
            "modules_to_save", "lora_bias", "trainable_token_indices",
        )
        if config.get(name)
    ]  # fmt: skip
    if config.get("peft_type") != "LORA" or more:
        raise ConfigError(
            f"{folder}: the pages run plain LoRA; merge this adapter first "
            f"({', '.join(more) or config.get('peft_type')})"
        )
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        "weights": _packed(tensors, "float16"),
        "scale": config["lora_alpha"] / config["r"],
    }


@torch.no_grad()
def format_error(
    model: MiniMind, tokenizer: PreTrainedTokenizerFast, format: str
) -> dict[str, float]:
    """What storing the weights in fewer bits does to a model.

    Parameters
    ----------
    model : MiniMind
        In float32; it is left as it is.
    tokenizer : PreTrainedTokenizerFast
    format : {"float16", "int8"}

    Returns
    -------
    dict
        On held-out stories: ``logits``, the largest difference of a logit;
        ``nats``, the mean divergence of the stored model's distributions
        from the model's own, per token.
    """
    rounded = MiniMind(model.config)
    rounded.load_state_dict({
        name: _rounded(tensor, format)
        for name, tensor in model.state_dict().items()
    })
    worst, nats, count = 0.0, 0.0, 0
    limit = model.config.max_position_embeddings
    for index in range(CHECKED):
        text = write_story(HELD_OUT_SEED, index).text
        ids = torch.tensor([encode_document(tokenizer, text)[:limit]])
        ours, theirs = model(ids).logits[0], rounded(ids).logits[0]
        worst = max(worst, float((ours - theirs).abs().max()))
        ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
        nats += float((ours.exp() * (ours - theirs)).sum())
        count += ids.numel()
    return {"logits": worst, "nats": nats / count}


def write_stage(name: str, stage: dict[str, Any], path: str | Path) -> int:
    """Write a stage as a script that hands it to the engine.

    Parameters
    ----------
    name : str
        What the pages ask for it by: ``MiniMindLab.stages[name]``.
    stage : dict
        From `describe_stage`.
    path : path

    Returns
    -------
    int
        The script's size in bytes.
    """
    return _write_script(path, f"stages[{json.dumps(name)}]", stage)


def write_world(path: str | Path) -> int:
    """Write the microworld as ``MiniMindLab.data``; returns the bytes."""
    data = {name: read_data(name) for name in ("world", "english", "chinese")}
    return _write_script(path, "data", data)


def _write_script(path: str | Path, target: str, data: Any) -> int:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, separators=(",", ":"))
    script = (
        f"globalThis.{GLOBAL} ??= {{}};\n"
        f"{GLOBAL}.stages ??= {{}};\n"
        f"{GLOBAL}.{target} = {text};\n"
    )
    path.write_text(script, encoding="utf-8")
    return path.stat().st_size


def bundle(folder: str | Path) -> str:
    """The engine's modules as one plain script.

    Parameters
    ----------
    folder : path
        ``book/_static/lab``.

    Returns
    -------
    str
        Its one global, ``MiniMindLab``, has what the modules export, and
        ``install``, the function that puts it there: its text is what a
        worker needs, which cannot be loaded from a file either.
    """
    parts = []
    for name in SCRIPTS:
        source = (Path(folder) / name).read_text("utf8")
        exported = re.findall(
            r"^export (?:class|function\*?|const) (\w+)", source, re.M
        )
        source = re.sub(
            r'^import \{([^}]+)\} from "\./\w+\.js";',
            r"const {\1} = lab;", source, flags=re.M,
        )  # fmt: skip
        source = re.sub(r"^export ", "", source, flags=re.M)
        names = ", ".join(exported)
        parts.append(
            f"// --- {name}\n(() => {{\n{source}"
            f"Object.assign(lab, {{ {names} }});\n}})();\n"
        )
    body = "".join(parts)
    return (
        "(function install(scope) {\n"
        f"const lab = (scope.{GLOBAL} ??= {{}});\n"
        "lab.stages ??= {};\n"
        f"lab.install = install;\n{body}"
        "})(globalThis);\n"
    )
