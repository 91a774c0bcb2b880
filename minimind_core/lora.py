"""LoRA: learn a small change to a large matrix, by hand and through peft.

    from minimind_core.lora import apply_lora, merge_lora_layers
    apply_lora(model, rank=8, alpha=16)        # our own, on a MiniMind
    merge_lora_layers(model)

    from minimind_core.lora import merge_lora, train_lora
    train_lora("runs/hf", "runs/lora")         # peft, on an exported folder
    merge_lora("runs/lora", "runs/merged")

A matrix W is left as it is and ``alpha / rank * B @ A`` is added to it,
where A has `rank` rows and B as many columns. B starts at zero, so the
adapted model starts as the model it was (Hu et al., arXiv:2106.09685).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minimind_core.checkpoint import (
    RUN_FILE,
    load_config,
    load_weights,
    read_weights,
    weights_of,
)
from minimind_core.config import get_preset
from minimind_core.data import (
    Data,
    Mixture,
    Rows,
    RowStream,
    conversation_encoder,
    open_source,
    parse_data,
)
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.evaluation import held_out_conversations
from minimind_core.export import write_package
from minimind_core.files import (
    atomic_folder,
    read_json,
    require_new,
    write_json,
    writing,
)
from minimind_core.model import MiniMind
from minimind_core.precision import resolve
from minimind_core.run import (
    Run,
    open_folder,
    package_version,
    read_facts,
    read_log,
)
from minimind_core.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
)
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ALL_LINEAR = (
    "q_proj", "k_proj", "v_proj", "o_proj",
    "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
TIED = ("embed_tokens", "lm_head")
ADAPTER_CONFIG = "adapter_config.json"


# --- by hand ---------------------------------------------------------------


class LoRALinear(nn.Module):
    """A linear layer with a low-rank change beside it.

    Parameters
    ----------
    base : nn.Linear
        Left as it is; its weights stop learning.
    rank : int
        Of the change.
    alpha : float
        The change is scaled by ``alpha / rank``, so that another rank does
        not ask for another learning rate.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the base, plus the change: (..., in) to (..., out)."""
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base with the change added to its weights."""
        change = self.lora_B.weight @ self.lora_A.weight
        self.base.weight += change * self.scale
        return self.base.requires_grad_(True)


def apply_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = ALL_LINEAR,
) -> list[str]:
    """Put LoRA beside the linear layers with certain names.

    Modules are replaced, not patched: a copy of the model is a copy of the
    adapters. Layers are found by name, whatever their shape.

    Parameters
    ----------
    model : nn.Module
        Changed in place; nothing but the adapters learns afterwards.
    rank : int
    alpha : float
    targets : sequence of str
        The last part of a layer's name.

    Returns
    -------
    list of str
        The layers that were adapted.

    Raises
    ------
    ConfigError
        If a target does not exist or must not be adapted.
    """
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    _refuse_tied(targets, getattr(model, "config", None))
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in targets
    ]
    unknown = set(targets) - {name.rpartition(".")[2] for name in found}
    if unknown:
        raise ConfigError(
            f"no linear layer is named {', '.join(sorted(unknown))}"
        )
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        holder = model.get_submodule(parent)
        layer = LoRALinear(getattr(holder, last), rank, alpha)
        setattr(holder, last, layer.to(layer.base.weight.device))
    return found


def merge_lora_layers(model: nn.Module) -> nn.Module:
    """Add every adapter to its base, leaving a model without any.

    Returns
    -------
    nn.Module
        `model`, changed in place.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.merged())
    return model.requires_grad_(True)


def _refuse_tied(targets: Sequence[str], config: Any) -> None:
    """An adapter on one end of a tie would change both when merged."""
    tied = getattr(config, "tie_word_embeddings", False)
    wrong = sorted(set(targets) & set(TIED))
    if tied and wrong:
        raise ConfigError(
            f"{', '.join(wrong)} shares its weights with the other end of "
            "the model, so a merged adapter would change both; to train "
            "single tokens use peft's trainable_token_indices"
        )


# --- through peft ----------------------------------------------------------


@contextmanager
def _peft() -> Iterator[Any]:
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


def load_base(folder: str | Path, device: str = "cpu") -> Any:
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


def train_lora(
    base: str | Path,
    out: str | Path,
    *,
    data: Data = "microworld",
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all-linear",
    dropout: float = 0.0,
    use_rslora: bool = False,
    use_dora: bool = False,
    steps: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    learning_rate: float | None = None,
    replay: float | None = None,
    preset: str | None = None,
    save_every: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Teach an exported model a new skill through a LoRA adapter.

    Parameters
    ----------
    base : path
        A Hugging Face folder, as `export_hf` writes it.
    out : path
        The adapter's folder, in peft's format. It names its base relative
        to itself, so both may be moved together.
    data
        ``microworld`` (its new manner of speaking), ``microworld:zh`` or
        ``.jsonl`` conversations.
    rank, alpha, dropout, use_rslora, use_dora
        See `peft.LoraConfig`.
    targets : "all-linear" or sequence of str
        Which layers are adapted; by name.
    replay : float, optional
        Share of rows from the microworld's ordinary conversations, so that
        the old manner is kept for where it belongs.
    steps, batch_size, seq_len, learning_rate, preset, save_every, device,
    dtype, seed, resume, progress
        As in `pretrain`.

    Returns
    -------
    Run
        Its ``model`` is the peft model, adapter on.

    Raises
    ------
    ConfigError, DataError, PrecisionError, CheckpointError, OutputError
    """
    base, out = Path(base), Path(out)
    spec = parse_data(data)
    facts = read_facts(base)
    chosen = get_preset(preset or facts.get("preset") or "tiny").lora
    changes = {
        "steps": steps, "batch_size": batch_size, "seq_len": seq_len,
        "learning_rate": learning_rate, "replay": replay, "seed": seed,
        "save_every": save_every, "device": device, "dtype": dtype,
    }  # fmt: skip
    config = chosen.replace(
        **{k: v for k, v in changes.items() if v is not None}
    )
    precision = resolve(device, dtype)
    shape = load_config(base)
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    if not isinstance(targets, str):
        _refuse_tied(targets, shape)
        if unknown := sorted(set(targets) - {*ALL_LINEAR, *TIED}):
            raise ConfigError(
                f"no layer is named {', '.join(unknown)}; there is "
                f"{', '.join(ALL_LINEAR)}"
            )
    folder = open_folder(out, resume=resume)
    if folder.finished:
        if progress:
            print(folder.note)
        model, tok = load_adapter(out)
        return Run(model, tok, read_log(out), out)
    source = open_source(spec, "skill", seed=seed)
    tok = load_tokenizer(base)
    if len(tok) > shape.vocab_size:
        raise CheckpointError(
            f"{base}: the tokenizer has {len(tok)} tokens, the model only "
            f"{shape.vocab_size}"
        )
    encode = conversation_encoder(tok, config.seq_len)
    stream: RowStream = Rows(
        source, encode, seq_len=config.seq_len, seed=seed
    )
    if config.replay:
        language = spec.language or "en"
        world = "microworld" if language == "en" else f"microworld:{language}"
        old = open_source(world, "conversations", seed=seed)
        kept = Rows(old, encode, seq_len=config.seq_len, seed=seed)
        stream = Mixture(stream, kept, config.replay, seed)
    torch.manual_seed(seed)
    with _peft() as peft:
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
        model = peft.get_peft_model(load_base(base), adapter)
    trainer = Trainer(
        model, stream, config, precision=precision,
        validate=held_out_conversations(
            tok, spec, seed=seed, seq_len=config.seq_len, kind="skill"
        ),
        out=out, title="LoRA", progress=progress,
        state={
            "data": spec.names(), "rank": rank, "alpha": alpha,
            "targets": targets if isinstance(targets, str)
            else list(targets),
            "dropout": dropout, "use_rslora": use_rslora,
            "use_dora": use_dora, "tokenizer": tokenizer_digest(tok),
        },
    )  # fmt: skip
    first = trainer.processes.first
    if first:
        if folder.note and progress:
            print(folder.note)
        folder.begin()
    trainer.processes.wait()
    if folder.checkpoint is not None:
        trainer.resume(folder.checkpoint)
    history = trainer.fit()
    if first:
        _save_adapter(model, tok, base, out)
        folder.finish(
            {
                "stage": "lora",
                "data": facts.get("data", spec.names()),
                "skill_data": spec.names(),
                "seed": seed,
                "precision": precision.dtype,
                "train": config.to_dict(),
            }
        )
    trainer.processes.wait()
    return Run(model, tok, history, out)


def _save_adapter(
    model: Any, tok: PreTrainedTokenizerFast, base: Path, out: Path
) -> None:
    with writing(out):
        # The base's tied weights are no adapter's business.
        model.save_pretrained(out, save_embedding_layers=False)
    save_tokenizer(tok, out)
    path = out / ADAPTER_CONFIG
    described = read_json(path)
    nearby = os.path.relpath(base.resolve(), out.resolve())
    described["base_model_name_or_path"] = Path(nearby).as_posix()
    write_json(path, described)
    (out / "README.md").unlink(missing_ok=True)  # peft's form, unfilled


def base_of(adapter: str | Path, base: str | Path | None = None) -> Path:
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
    folder = base_of(adapter, base)
    with _peft() as peft:
        try:
            model = peft.PeftModel.from_pretrained(
                load_base(folder), str(adapter)
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
    model = MiniMind(load_config(base_of(adapter, base)))
    state = adapted.merge_and_unload().state_dict()
    load_weights(model, state, str(adapter))
    return model.to(device).eval(), tok


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
    facts = read_facts(adapter)
    with atomic_folder(out) as folder:
        write_package(folder, model.config, weights_of(model), tok)
        write_json(
            folder / RUN_FILE,
            {
                **{k: facts[k] for k in ("data", "seed") if k in facts},
                "stage": "merged",
                "finished": True,
                "minimind_core": package_version(),
            },
        )
    return out
