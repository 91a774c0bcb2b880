"""The trained models in the pages: what the scripts in the browser load.

    from minimind_core.book.lab import write_lab
    write_lab("book/_static/lab", "_build/html/_static/lab")

    stage = describe_stage(get_stage("sft"))        # or any folder
    write_stage("sft", stage, "_build/html/_static/lab/sft.js")

The engine itself is JavaScript and lies in ``book/_static/lab``. A page that
is opened as a file may load scripts, but neither modules nor data, so
everything is written as a plain script: the engine as one bundle, each
model as a call that hands its data to the engine, and the microworld too.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.book.curve import loss_curve
from minimind_core.checkpoint import weights_of
from minimind_core.config import PRESETS
from minimind_core.cost import DEVICES, ROOM, UTILIZATION, hours_on, tokens_of
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.evaluation import held_out_documents
from minimind_core.files import read_json
from minimind_core.generate import generate_tokens
from minimind_core.loading import (
    ADAPTER_CONFIG,
    adapter_base,
    load_model,
)
from minimind_core.microworld import HELD_OUT_SEED, write_story
from minimind_core.microworld.tape import read_data
from minimind_core.microworld.truth import Truth
from minimind_core.model import MiniMind
from minimind_core.run import read_log
from minimind_core.tokenizer import decode, encode_document, encode_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

SCRIPTS = (
    "linear.js", "engine.js", "tokenizer.js", "weights.js", "sampling.js",
    "world.js", "questions.js", "xray.js", "session.js",
)  # fmt: skip
"""The parts of the engine; each imports only from those before it."""
PAGE_SCRIPTS = (
    "page.js", "write.js", "home.js", "learn.js", "look.js", "talk.js",
    "exam.js", "mask.js", "cost.js", "price.js", "start.js",
)  # fmt: skip
"""The widgets, in the folder ``page``: they talk to an engine in a worker."""
GLOBAL = "MiniMindLab"
CHECKED = 50
SHOWN_STEP = 150
REGRET_LEVELS = (0.1, 0.3, 1)
"""A token is marked the more, the more of these its regret exceeds (nats)."""
BEGINNING = "One sunny morning, Mia"


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


def write_lab(source: str | Path, target: str | Path) -> dict[str, str]:
    """Write all that the pages load: scripts, the world and the models.

    Parameters
    ----------
    source : path
        ``book/_static/lab``.
    target : path
        The folder for the scripts. ``index.js`` there says what each model
        weighs, what rounding its weights to int8 costs and how far it is
        from the floor; from which regret on a token is marked; and the
        presets and cards that the calculator offers.

    Returns
    -------
    dict of str to str
        HTML that can stand in a page until a widget does: see
        `story_picture`, `loss_curve` and `cost_picture`.
    """
    from minimind_core.book.stages import get_snapshots, get_stage

    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    (target / "engine.js").write_text(bundle(source), encoding="utf-8")
    widgets = bundle(Path(source) / "page", PAGE_SCRIPTS, "page")
    (target / "page.js").write_text(widgets, encoding="utf-8")
    write_world(target / "world.js")
    folder = get_stage("pretrain")
    model, tokenizer = load_model(folder)
    last = int(read_log(folder)[-1]["step"])
    parts = describe_model(model, tokenizer, "int8")
    listed: dict[str, dict[str, float]] = {}
    size = write_stage(
        "tokenizer", parts["tokenizer"], target / "tokenizer.js"
    )
    listed["tokenizer"] = {"bytes": size}

    def write(name: str, stage: dict[str, Any], **more: float) -> None:
        size = write_stage(name, stage, target / f"{name}.js")
        listed[name] = {
            "bytes": size, "nats": stage["error"]["nats"], **more,
        }  # fmt: skip

    measure = distance(tokenizer)
    write("pretrain", parts, step=last, **measure(model))
    pictures = {"write": story_picture(model, tokenizer)}
    write("lora", describe_stage(get_stage("lora"), "int8"))
    steps = []
    for step, file in get_snapshots().items():
        model.load_state_dict(_with_head(load_weights(file), model))
        name = f"step-{step}"
        stage = describe_model(model, tokenizer, "int8")
        write(name, stage, step=step, **measure(model))
        steps.append(name)
        if step == SHOWN_STEP:
            said = f"After {step} steps"
            pictures["learn"] = story_picture(model, tokenizer, said)
    steps.append("pretrain")
    index = {
        "stages": listed, "steps": steps, "levels": REGRET_LEVELS,
        "cost": cost_figures(),
    }  # fmt: skip
    _write_script(target / "index.js", "index", index)
    curve = loss_curve(read_log(folder), {n: listed[n] for n in steps})
    pictures["home"] = curve + pictures["write"]
    pictures["cost"] = cost_picture()
    return pictures


def cost_figures() -> dict[str, Any]:
    """Return what the calculator of chapter 10 starts from.

    Returns
    -------
    dict
        ``presets``, each with its shape and the data of its pretraining;
        ``devices``; ``utilization32``, the shares to expect in float32; and
        ``room``, the share of a card's memory that may be filled.
    """
    presets = {}
    for name, preset in PRESETS.items():
        config = preset.pretrain
        presets[name] = {
            "shape": preset.model.to_dict(), "tokens": tokens_of(config),
            "length": config.seq_len, "optimizer": config.optimizer,
            "rows": config.micro_batch_size or config.batch_size,
        }  # fmt: skip
    return {
        "presets": presets,
        "devices": {n: card._asdict() for n, card in DEVICES.items()},
        "utilization32": UTILIZATION["float32"],
        "room": ROOM,
    }


def cost_picture() -> str:
    """Return what stands for the calculator where no script runs.

    Returns
    -------
    str
        A ``<figure>``: a table of the larger presets' hours on each card.
    """
    larger = {n: preset for n, preset in PRESETS.items() if n != "tiny"}
    heads = "".join(f'<th scope="col">{name}</th>' for name in larger)
    rows = [
        f'<tr><th scope="row">{card.name}</th>'
        + "".join(
            f"<td>{hours_on(card, preset, preset.pretrain)}</td>"
            for preset in larger.values()
        )
        + "</tr>"
        for card in DEVICES.values()
    ]
    return (
        '<figure class="lab-still lab-hours"><table><thead><tr>'
        f"<td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "<figcaption>The estimated time of pretraining for the larger "
        "presets, over the range of utilizations that we would expect."
        "</figcaption></figure>"
    )


def load_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(file)


def _with_head(
    tensors: dict[str, Tensor], model: MiniMind
) -> dict[str, Tensor]:
    """Weights as the model names them: a tied head is saved once."""
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def distance(
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[MiniMind], dict[str, float]]:
    """Return a function that measures how far a model is from the floor.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    callable
        Takes a model; returns its ``loss`` and the ``floor``, both in nats
        per token, on the texts that the pretraining of the stages is
        validated on. So the numbers are those of its log.
    """
    check = held_out_documents(tokenizer, "microworld", seed=0)

    def measure(model: MiniMind) -> dict[str, float]:
        found = check(model)
        return {"loss": found["validation_loss"], "floor": found["floor"]}

    return measure


def regret_levels(regrets: Sequence[float]) -> list[str]:
    """Return how each token is marked, here and in the pages.

    ``index.js`` has `REGRET_LEVELS`, and ``levels`` in ``page.js`` compares
    with them in the same way.

    Parameters
    ----------
    regrets : sequence of float
        In nats; minus infinity from where a text has left the world.

    Returns
    -------
    list of str
        ``0`` to ``3``, or ``out`` from the first that cannot be.
    """
    levels: list[str] = []
    for regret in regrets:
        if (levels and levels[-1] == "out") or regret == -math.inf:
            levels.append("out")
        else:
            levels.append(str(sum(regret > one for one in REGRET_LEVELS)))
    return levels


@torch.no_grad()
def story_picture(
    model: MiniMind, tokenizer: PreTrainedTokenizerFast, who: str = ""
) -> str:
    """Write a story and show it as the X-ray would, in plain HTML.

    Parameters
    ----------
    model, tokenizer
    who : str
        Who wrote it: the beginning of the caption.

    Returns
    -------
    str
        A ``<figure>``. Of a few stories it shows the first that has a
        mistake, if there is one, since this is what the X-ray is for.
    """
    truth = Truth("en", lambda text: encode_text(tokenizer, text))
    begun = encode_document(tokenizer, BEGINNING)[:-1]
    for seed in range(20):
        drawn = generate_tokens(
            model, torch.tensor([begun]), max_new_tokens=120,
            generator=torch.Generator().manual_seed(seed),
        )[0].tolist()  # fmt: skip
        text = decode(tokenizer, drawn)
        seen = truth.read(text)
        if seen.left is not None:
            break
    ids = torch.tensor([[begun[0], *seen.tokens]])
    logprobs = model(ids[:, :-1]).logits[0].log_softmax(-1)
    ours = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    levels = regret_levels([
        right - own for right, own in zip(seen.logprobs, ours, strict=True)
    ])
    spans, gone = [], False
    for place, (token, level) in enumerate(
        zip(seen.tokens[:-1], levels, strict=False)
    ):
        names = ["given"] if place < len(begun) - 1 else []
        names += ["first"] if level == "out" and not gone else []
        gone = gone or level == "out"
        classes = f' class="{" ".join(names)}"' if names else ""
        piece = html.escape(decode(tokenizer, [token]), quote=False)
        spans.append(f'<span data-level="{level}"{classes}>{piece}</span>')
    said = html.escape(who or "The pretrained model")
    reason = "" if seen.left is None else (
        '<p class="lab-reason">\u2717 The text leaves the world: '
        f"{html.escape(seen.left.reason)}.</p>"
    )  # fmt: skip
    return (
        f'<figure class="lab-still"><p class="lab-story">{"".join(spans)}</p>'
        f"{reason}<figcaption>{said} wrote this when the page was built. A "
        "colored word cost more than it had to; what the world does not "
        "allow is underlined.</figcaption></figure>"
    )


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


def bundle(
    folder: str | Path,
    scripts: Sequence[str] = SCRIPTS,
    part: str | None = None,
) -> str:
    """The engine's modules, or the widgets', as one plain script.

    Parameters
    ----------
    folder : path
        Where the modules are: ``book/_static/lab`` by default.
    scripts : sequence of str
        Their names; each may import only from those before it.
    part : str, optional
        Put what they export into this part of the global object instead.

    Returns
    -------
    str
        Its one global, ``MiniMindLab``, has what the modules export, and
        ``install``, the function that puts it there: its text is what a
        worker needs, which cannot be loaded from a file either. A `part`
        has no ``install``.
    """
    parts = []
    for name in scripts:
        source = (Path(folder) / name).read_text("utf8")
        exported = re.findall(
            r"^export (?:class|(?:async )?function\*?|const) (\w+)",
            source, re.M,
        )  # fmt: skip
        source = re.sub(
            r'^import \{([^}]+)\} from "\./\w+\.js";\n',
            r"const {\1} = lab;\n", source, flags=re.M,
        )  # fmt: skip
        source = re.sub(r"^export ", "", source, flags=re.M)
        names = ", ".join(exported)
        parts.append(
            f"// --- {name}\n(() => {{\n{source}"
            f"Object.assign(lab, {{ {names} }});\n}})();\n"
        )
    body = "".join(parts)
    if part is not None:
        return (
            "(() => {\n"
            f"const lab = ((globalThis.{GLOBAL} ??= {{}}).{part} = {{}});\n"
            f"{body}}})();\n"
        )
    return (
        "(function install(scope) {\n"
        f"const lab = (scope.{GLOBAL} ??= {{}});\n"
        "lab.stages ??= {};\n"
        f"lab.install = install;\n{body}"
        "})(globalThis);\n"
    )
