"""Training stages as functions: pretraining, fine-tuning, LoRA, all of it.

    from minimind_core import pretrain, sft
    run = pretrain("runs/pretrain")             # about two minutes, 2 cores
    run = sft("runs/pretrain", "runs/sft")

Each checks everything it was given before it writes anything, trains in
place, leaves a run folder and returns a `Run`. A run that was stopped goes
on with ``resume=True`` from its last checkpoint, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.adapters import (
    add_adapter,
    check_targets,
    merge_lora,
    save_adapter,
)
from minimind_core.checkpoint import save_model, weights_digest
from minimind_core.config import ModelConfig, TrainConfig, get_preset
from minimind_core.data import (
    Data,
    Mixture,
    Rows,
    RowStream,
    conversation_encoder,
    document_encoder,
    open_source,
    parse_data,
    tokenizer_texts,
)
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.evaluation import (
    held_out_conversations,
    held_out_documents,
    sample_documents,
)
from minimind_core.export import export_hf
from minimind_core.files import require_new
from minimind_core.loading import load_adapter, load_config, load_model
from minimind_core.model import MiniMind
from minimind_core.precision import resolve
from minimind_core.run import (
    Run,
    RunFolder,
    open_folder,
    read_log,
    read_metadata,
    training_data,
)
from minimind_core.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    train_tokenizer,
)
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast



def _settings(base: TrainConfig, **changes: Any) -> TrainConfig:
    """A preset's settings with those that were given."""
    given = {k: v for k, v in changes.items() if v is not None}
    return base.replace(**given)


def pretrain(
    out: str | Path,
    *,
    preset: str = "tiny",
    data: Data = "microworld",
    tokenizer: str | Path | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    packed: bool | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    sample_every: int | None = None,
    save_every: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    pth: bool = False,
    progress: bool = True,
) -> Run:
    """Train a new model to continue text.

    Parameters
    ----------
    out : path
        The run folder; must be new, unless `resume`.
    preset : {"tiny", "small", "base"}
        Shape and settings; whatever is given below takes precedence.
    data
        ``microworld``, ``microworld:zh`` or paths of ``.txt`` and ``.jsonl``
        files (``{"text": ...}``).
    tokenizer : path, optional
        A folder; without it a tokenizer is trained on `data` first.
    steps, batch_size, micro_batch_size, seq_len, packed, optimizer,
    lr, sample_every, save_every
        See `TrainConfig`. Files are packed unless `packed` says otherwise.
    device, dtype : str
        See `precision.resolve`.
    seed : int
        Of the weights and of the data.
    resume : bool
        Go on from the last checkpoint of an unfinished run.
    pth : bool
        Also write MiniMind's native ``minimind.pth``.
    progress : bool
        Print a progress line.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError, DataError, PrecisionError, CheckpointError, OutputError
        Before anything is written, wherever that can be known.
    """
    chosen = get_preset(preset)
    spec = parse_data(data)
    if packed is None and spec.language is None:
        packed = True
    config = _settings(
        chosen.pretrain, steps=steps, batch_size=batch_size, seed=seed,
        micro_batch_size=micro_batch_size, seq_len=seq_len, packed=packed,
        optimizer=optimizer, lr=lr, device=device,
        sample_every=sample_every, save_every=save_every, dtype=dtype,
    )  # fmt: skip
    precision = resolve(device, dtype)
    folder = open_folder(out, resume=resume)
    if folder.finished:
        return _finished(folder.path, folder.note, progress)
    source = open_source(spec, "text", seed=seed)
    if folder.checkpoint is not None:
        tok = load_tokenizer(folder.path)
    elif tokenizer is not None:
        tok = load_tokenizer(tokenizer)
    else:
        tok = train_tokenizer(tokenizer_texts(spec), chosen.vocab_size)
    shape = chosen.model.replace(vocab_size=len(tok))
    _require_room(shape, config)
    torch.manual_seed(seed)
    model = MiniMind(shape)
    stream = Rows(
        source, document_encoder(tok), seq_len=config.seq_len,
        packed=config.packed, seed=seed,
    )  # fmt: skip
    trainer = Trainer(
        model, stream, config, precision=precision,
        validate=held_out_documents(
            tok, spec, seed=seed, seq_len=config.seq_len
        ),
        sample=sample_documents(tok, spec, seed=seed),
        out=folder.path, title="pretraining", progress=progress,
        state={"data": spec.names(), "tokenizer": tokenizer_digest(tok)},
    )  # fmt: skip
    facts = {"stage": "pretrain", "preset": preset, "data": spec.names()}
    return _train(trainer, folder, tok, facts, pth)


def sft(
    base: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    data: Data = "microworld",
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    replay: float | None = None,
    save_every: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    pth: bool = False,
    progress: bool = True,
) -> Run:
    """Teach a pretrained model to answer.

    Parameters
    ----------
    base : path
        The run folder of the pretrained model.
    out : path
        The new run folder.
    preset : str, optional
        Whose settings to take; the base's own if not given.
    data
        ``microworld``, ``microworld:zh`` or ``.jsonl`` files of
        ``{"conversations": [{"role": ..., "content": ...}, ...]}``.
    replay : float, optional
        Share of rows taken from what the base was pretrained on, so that it
        is kept; 0 does without that data.
    steps, batch_size, micro_batch_size, seq_len, optimizer, lr,
    save_every, device, dtype, seed, resume, pth, progress
        As in `pretrain`.

    Returns
    -------
    Run
    """
    spec = parse_data(data)
    facts = read_metadata(base)
    preset = preset or facts.get("preset") or "tiny"
    config = _settings(
        get_preset(preset).sft, steps=steps, batch_size=batch_size,
        micro_batch_size=micro_batch_size, seq_len=seq_len, seed=seed,
        optimizer=optimizer, lr=lr, replay=replay,
        save_every=save_every, device=device, dtype=dtype,
    )  # fmt: skip
    precision = resolve(device, dtype)
    folder = open_folder(out, resume=resume)
    if folder.finished:
        return _finished(folder.path, folder.note, progress)
    source = open_source(spec, "conversations", seed=seed)
    model, tok = load_model(base)
    _require_room(model.config, config)
    stream: RowStream = Rows(
        source, conversation_encoder(tok, config.seq_len),
        seq_len=config.seq_len, seed=seed,
    )  # fmt: skip
    if config.replay:
        old = open_source(facts.get("data", "microworld"), "text", seed=seed)
        documents = Rows(
            old, document_encoder(tok), seq_len=config.seq_len, seed=seed
        )
        # The same stories again would teach nothing: start far behind them.
        documents.drawn = 1_000_000 if old.size is None else 0
        stream = Mixture(stream, documents, config.replay, seed)
    torch.manual_seed(seed)
    trainer = Trainer(
        model, stream, config, precision=precision,
        validate=held_out_conversations(
            tok, spec, seed=seed, seq_len=config.seq_len
        ),
        out=folder.path, title="fine-tuning", progress=progress,
        state={
            "data": spec.names(),
            "base": weights_digest(model),
            "tokenizer": tokenizer_digest(tok),
        },
    )  # fmt: skip
    said = {
        "stage": "sft", "preset": preset, "data": spec.names(),
        "trained_on": training_data(facts),
    }  # fmt: skip
    return _train(trainer, folder, tok, said, pth)


def _require_room(shape: ModelConfig, config: TrainConfig) -> None:
    if config.seq_len > shape.max_position_embeddings:
        raise ConfigError(
            f"seq_len {config.seq_len} is longer than the model's "
            f"{shape.max_position_embeddings} positions"
        )


def _finished(path: Path, note: str, progress: bool) -> Run:
    """A resumed run that needs nothing more."""
    if progress:
        print(note)
    model, tok = load_model(path)
    return Run(model, tok, read_log(path), path)


def _train(
    trainer: Trainer,
    folder: RunFolder,
    tok: PreTrainedTokenizerFast,
    facts: dict[str, Any],
    pth: bool,
) -> Run:
    """From a trainer that is ready to a finished run folder."""
    first = trainer.processes.is_main
    if first:
        if folder.note and trainer.progress.stream is not None:
            print(folder.note)
        folder.begin()
        if folder.checkpoint is None:
            # From the first step on, a run carries its tokenizer.
            save_tokenizer(tok, folder.path)
    trainer.processes.barrier()
    if folder.checkpoint is not None:
        trainer.resume(folder.checkpoint)
    history = trainer.fit()
    model = trainer.model
    assert isinstance(model, MiniMind)
    if first:
        save_model(model, tok, folder.path, pth=pth)
        folder.finish(
            {
                **facts,
                "seed": trainer.config.seed,
                "precision": trainer.precision.dtype,
                "train": trainer.config.to_dict(),
            }
        )
    trainer.processes.barrier()
    return Run(model, tok, history, folder.path)


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
    lr: float | None = None,
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
        ``microworld`` (its new style), ``microworld:zh`` or
        ``.jsonl`` conversations.
    rank, alpha, dropout, use_rslora, use_dora
        See `peft.LoraConfig`.
    targets : "all-linear" or sequence of str
        Which layers are adapted; by name.
    replay : float, optional
        Share of rows from the microworld's ordinary conversations, so that
        the old style is kept where it belongs.
    steps, batch_size, seq_len, lr, preset, save_every, device,
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
    facts = read_metadata(base)
    chosen = get_preset(preset or facts.get("preset") or "tiny").lora
    changes = {
        "steps": steps, "batch_size": batch_size, "seq_len": seq_len,
        "lr": lr, "replay": replay, "seed": seed,
        "save_every": save_every, "device": device, "dtype": dtype,
    }  # fmt: skip
    config = chosen.replace(
        **{k: v for k, v in changes.items() if v is not None}
    )
    precision = resolve(device, dtype)
    shape = load_config(base)
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}")
    check_targets(targets, shape)
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
    model = add_adapter(
        base, rank=rank, alpha=alpha, targets=targets, dropout=dropout,
        use_rslora=use_rslora, use_dora=use_dora,
    )  # fmt: skip
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
    first = trainer.processes.is_main
    if first:
        if folder.note and progress:
            print(folder.note)
        folder.begin()
    trainer.processes.barrier()
    if folder.checkpoint is not None:
        trainer.resume(folder.checkpoint)
    history = trainer.fit()
    if first:
        said = {
            "stage": "lora",
            "data": facts.get("data", spec.names()),
            "skill_data": spec.names(),
            "trained_on": training_data(facts),
            "seed": seed,
            "precision": precision.dtype,
            "train": config.to_dict(),
        }
        save_adapter(model, tok, base, out, said)
        folder.finish(said)
    trainer.processes.barrier()
    return Run(model, tok, history, out)


# --- all of it -------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """The folders a journey has left, and how long each stage took.

    Attributes
    ----------
    path : Path
    seconds : dict of str to float
        By stage, in order: tokenizer, pretrain, sft, hf, lora, merged.
    """

    path: Path
    seconds: dict[str, float]

    def folder(self, stage: str) -> Path:
        """The folder of one stage."""
        return self.path / stage


def run_journey(
    out: str | Path,
    *,
    preset: str = "tiny",
    data: Data = "microworld",
    text: Data | None = None,
    chat: Data | None = None,
    lora_chat: Data | None = None,
    steps: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Journey:
    """From raw text to a merged, LoRA-adapted chat model.

    Parameters
    ----------
    out : path
        Gets the folders ``tokenizer``, ``pretrain``, ``sft``, ``hf``,
        ``lora`` and ``merged``; it may be moved afterwards.
    preset : {"tiny", "small", "base"}
    data
        ``microworld`` or ``microworld:zh``, for what is not given below.
    text, chat, lora_chat : paths, optional
        Your own documents, conversations, and conversations for LoRA.
        Without `lora_chat`, every tenth conversation of `chat` is kept for
        it and not used in fine-tuning.
    steps : int, optional
        Of each of the three trainings.
    device, dtype, seed, progress
        As in `pretrain`.
    resume : bool
        Go on with a journey that was stopped.

    Returns
    -------
    Journey

    Raises
    ------
    MiniMindError
        As `pretrain`, `sft`, `export_hf`, `train_lora` and `merge_lora` do.
    """
    out = Path(out)
    get_preset(preset)
    resolve(device, dtype)
    world = parse_data(data)
    chosen_text = parse_data(text) if text is not None else world
    chosen_chat = parse_data(chat) if chat is not None else world
    chosen_lora = chosen_chat
    if lora_chat is not None:
        chosen_lora = parse_data(lora_chat)
    elif chosen_chat.paths and not chosen_chat.part:
        chosen_lora = replace(chosen_chat, part="tenth")
        chosen_chat = replace(chosen_chat, part="rest")
    # Read every file to its end before the first second of training.
    open_source(chosen_text, "text")
    open_source(chosen_chat, "conversations")
    open_source(chosen_lora, "skill")
    if not resume:
        require_new(out)
    common: dict[str, Any] = {
        "device": device, "dtype": dtype, "seed": seed, "resume": resume,
        "steps": steps, "progress": progress,
    }  # fmt: skip

    def make_tokenizer() -> None:
        texts = tokenizer_texts(chosen_text, chosen_chat)
        size = get_preset(preset).vocab_size
        train_tokenizer(texts, size, out=out / "tokenizer")

    stages: dict[str, Callable[[], object]] = {
        "tokenizer": make_tokenizer,
        "pretrain": lambda: pretrain(
            out / "pretrain", preset=preset, data=chosen_text,
            tokenizer=out / "tokenizer", **common,
        ),
        "sft": lambda: sft(
            out / "pretrain", out / "sft", data=chosen_chat, **common
        ),
        "hf": lambda: export_hf(out / "sft", out / "hf"),
        "lora": lambda: train_lora(
            out / "hf", out / "lora", data=chosen_lora, **common
        ),
        "merged": lambda: merge_lora(out / "lora", out / "merged"),
    }  # fmt: skip
    seconds: dict[str, float] = {}
    whole = {"tokenizer", "hf", "merged"}
    for name, make in stages.items():
        started = time.perf_counter()
        # These three appear complete or not at all, so they are there.
        if not (resume and name in whole and (out / name).exists()):
            make()
        seconds[name] = round(time.perf_counter() - started, 1)
        if progress:
            print(f"{name:<9} {seconds[name]:6.1f} s  {out / name}")
    return Journey(out, seconds)
