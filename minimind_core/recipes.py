"""Training stages as functions: pretraining, fine-tuning and LoRA.

    from minimind_core import pretrain, sft
    run = pretrain("runs/pretrain")             # about two minutes, 2 cores
    run = sft("runs/pretrain", "runs/sft")

    pretrain("runs/mine", model=ModelConfig(hidden_size=256), steps=500,
             data=[{"text": "One day Mia met Tom."}, ...],
             beta2=0.98, callbacks=[EarlyStopping()])

Each function checks all of its arguments before it writes anything, trains,
fills a run folder and returns a `Run`. With ``resume=True``, a run that was
stopped continues from its last checkpoint, with bit-identical results.

The settings start from a preset, or from ones that suit the base. ``config``
overrides them, and keyword arguments override both: every field of
`TrainConfig` is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from minimind_core.adapters import (
    add_adapter,
    check_targets,
    merge_lora,
    save_adapter,
)
from minimind_core.calibration import choose_precision
from minimind_core.callbacks import Callback
from minimind_core.checkpoint import (
    prune_checkpoints,
    save_model,
    weights_digest,
)
from minimind_core.config import (
    ModelConfig,
    Preset,
    TrainConfig,
    get_preset,
)
from minimind_core.cost import foresee
from minimind_core.data import (
    Data,
    DataSpec,
    Encoder,
    Mixture,
    Rows,
    RowStream,
    Source,
    conversation_encoder,
    document_encoder,
    encode_ahead,
    left_out,
    open_source,
    parse_data,
    tokenizer_texts,
)
from minimind_core.distributed import join_processes, run_once
from minimind_core.errors import ConfigError, DataError
from minimind_core.evaluation import (
    held_out_conversations,
    held_out_documents,
    sample_documents,
)
from minimind_core.export import export_hf
from minimind_core.files import require_new
from minimind_core.loading import (
    check_tokenizer,
    load_adapter,
    load_config,
    load_model,
)
from minimind_core.model import MiniMind
from minimind_core.precision import Precision, detect_device, resolve
from minimind_core.run import (
    Record,
    Run,
    RunFolder,
    open_folder,
    portable,
    read_log,
    read_metadata,
    training_data,
)
from minimind_core.settings import (
    Start,
    nearest_preset,
    recorded_settings,
    starting_settings,
)
from minimind_core.threads import choose_threads
from minimind_core.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    special_ids,
    tokenizer_digest,
    train_tokenizer,
)
from minimind_core.train import Check, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OwnOptimizer = Callable[[nn.Module], Optimizer]
OwnSchedule = Callable[[int], float]

BEHIND = 1_000_000
"""Offset at which a second stage reads an endless source, because the same
records would teach nothing new."""


# --- what the stages share -------------------------------------------------


def _settle(
    start: TrainConfig, *layers: TrainConfig | Mapping[str, Any] | None
) -> TrainConfig:
    """Override settings by each layer in turn."""
    for layer in layers:
        if isinstance(layer, TrainConfig):
            start = layer
        elif isinstance(layer, Mapping):
            start = start.replace(**layer)
        elif layer is not None:
            raise ConfigError(
                "config must be a TrainConfig, or a mapping of some of its "
                f"settings, not a {type(layer).__name__}"
            )
    return start


def _given(**values: Any) -> dict[str, Any]:
    return {name: v for name, v in values.items() if v is not None}


def _own_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the caller's own code from the settings, and return it."""
    own = {}
    for name in ("optimizer", "schedule"):
        if isinstance(settings.get(name), Optimizer):
            raise ConfigError(
                "an optimizer needs the model, which does not exist yet: "
                "pass a function that takes the model and returns one"
            )
        if callable(settings.get(name)):
            own[name] = settings.pop(name)
    return own


def _shape(preset: Preset, model: Any) -> ModelConfig:
    """The preset's shape, or the one that the caller passed."""
    if model is None:
        return preset.model
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, Mapping):
        return preset.model.replace(**model)
    raise ConfigError(
        "model must be a ModelConfig, or a mapping of some of its fields, "
        f"not a {type(model).__name__}"
    )


def _with_vocabulary(
    shape: ModelConfig, tok: PreTrainedTokenizerFast, model: Any
) -> ModelConfig:
    """Return the shape with an embedding row for each token.

    A requested number of rows is kept if it is large enough. The ids of the
    special tokens are the tokenizer's, which need not be 0, 1 and 2, except
    those that were set by name.
    """
    bos, eos, pad = special_ids(tok)
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    if isinstance(model, Mapping):
        ids = {k: v for k, v in ids.items() if k not in model}
    asked = isinstance(model, ModelConfig) or "vocab_size" in (model or {})
    if asked and shape.vocab_size > len(tok):
        return shape.replace(**ids)
    if asked and shape.vocab_size < len(tok):
        raise ConfigError(
            f"vocab_size {shape.vocab_size} is less than the "
            f"{len(tok)} tokens of the tokenizer"
        )
    return shape.replace(vocab_size=len(tok), **ids)


#: Settings that have no effect in a stage, and why.
WITHOUT_EFFECT = {
    "pretrain": {"replay": "pretraining has no earlier data to replay"},
    "sft": {
        "packed": "conversations are not packed",
        "sample_every": "samples are drawn in pretraining only",
    },
}
WITHOUT_EFFECT["lora"] = WITHOUT_EFFECT["sft"]


def _refuse_without_effect(stage: str, config: TrainConfig) -> None:
    for name, reason in WITHOUT_EFFECT[stage].items():
        if getattr(config, name):
            raise ConfigError(
                f"{name}={getattr(config, name)} would have no effect: "
                f"{reason}"
            )


#: Settings of Muon, which AdamW has no use for.
OF_MUON = ("muon_lr_ratio", "momentum")
#: Settings that the caller's own optimizer or schedule takes the place of.
REPLACED_BY = {
    "optimizer": ("lr", *OF_MUON, "beta1", "beta2", "weight_decay"),
    "schedule": ("warmup_ratio",),
}


def _refuse_unused(
    plan: TrainConfig,
    own: Mapping[str, Any],
    *layers: TrainConfig | Mapping[str, Any] | None,
) -> None:
    """Raise an error for a setting that was given and is not used.

    A layer with all settings, such as a recorded run's, says nothing about
    which of them were chosen, so it is not examined.
    """
    fields = len(dataclasses.fields(TrainConfig))
    given = {
        name
        for layer in layers
        if isinstance(layer, Mapping) and len(layer) < fields
        for name in layer
    }
    for code in own:
        if unused := sorted(given.intersection(REPLACED_BY[code])):
            raise ConfigError(
                f"{', '.join(unused)} would have no effect, because your "
                f"own {code} decides; set it there"
            )
    if "optimizer" not in own and plan.optimizer == "adamw":
        if unused := sorted(given.intersection(OF_MUON)):
            raise ConfigError(
                f"{', '.join(unused)} would have no effect, because only "
                "Muon has this setting and the optimizer is adamw"
            )


def _require_room(shape: ModelConfig, config: TrainConfig) -> None:
    if config.seq_len > shape.max_position_embeddings:
        raise ConfigError(
            f"seq_len {config.seq_len} is longer than the model's "
            f"{shape.max_position_embeddings} positions"
        )


def _require_memory(shape: ModelConfig) -> None:
    """Refuse a shape whose weights alone exceed this machine's memory."""
    import psutil

    size, memory = 4 * shape.num_parameters(), psutil.virtual_memory().total
    if size > memory:
        raise ConfigError(
            f"a model of this shape has {shape.num_parameters():,} "
            f"parameters, {size / 2**30:,.0f} GiB in float32, and this "
            f"machine has {memory / 2**30:,.0f} GiB of memory; choose a "
            "smaller one"
        )


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Restore torch's number of threads after training."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose(
    shape: ModelConfig, config: TrainConfig, folder: RunFolder
) -> Precision:
    """Choose the number format and the threads of a new run.

    A resumed run takes both from its checkpoint.
    """
    if folder.checkpoint is not None:
        return resolve(config.device, config.dtype)
    torch.set_num_threads(config.threads or choose_threads(shape).number)
    return choose_precision(
        config.device, config.dtype, model=shape, seq_len=config.seq_len,
        batch_size=config.micro_batch_size or config.batch_size,
        optimizer=config.optimizer,
    )  # fmt: skip


def _held_out(
    spec: DataSpec, validate: Check | None, make: Callable[[], Check]
) -> Check | None:
    """Return the validation function: the caller's, or the default.

    Nothing can be held out of the caller's source if it is endless.
    """
    if validate is not None:
        return validate
    if getattr(spec.memory, "size", 0) is None:
        return None
    return make()


def _announced(
    start: Start, config: TrainConfig, base: Path, shape: ModelConfig
) -> str:
    """Describe automatically chosen settings, and how long it will take.

    Empty for a preset's settings, and for what takes minutes.
    """
    facts = detect_device(config.device)
    cost = foresee(shape, config, facts.type, facts.name)
    chosen = _chosen(start, config, base)
    return "\n".join(filter(None, (chosen, cost)))


def _chosen(start: Start, config: TrainConfig, base: Path) -> str:
    if not start.about:
        return ""
    micro = min(config.micro_batch_size or config.batch_size,
                config.batch_size)  # fmt: skip
    return (
        f"{base} is {start.about}; training {config.steps} steps of "
        f"{config.batch_size} rows ({micro} at a time) of up to "
        f"{config.seq_len} tokens with {config.optimizer} at lr "
        f"{config.lr:g}, "
        + (f"replay {config.replay:g}" if config.replay else "no replay")
    )


def _finished(
    folder: RunFolder,
    progress: bool,
    load: Callable[[Path], tuple[Any, Any]] = load_model,
) -> Run:
    """Return a resumed run that has already finished."""
    if progress:
        run_once(lambda: print(folder.note))
    model, tok = load(folder.path)
    return Run(model, tok, read_log(folder.path), folder.path, trained=False)


def _skipped(rows: Rows, config: TrainConfig) -> str:
    """Describe the records that were skipped; empty if none were."""
    bad = left_out(rows.source)
    lines = [bad.describe()] if bad and bad.count else []
    if count := rows.skipped - (bad.count if bad else 0):
        refused = ", or the chat template refuses them" if bad else ""
        lines.append(
            f"left out {count} of {rows.drawn} records "
            f"({count / rows.drawn:.0%}): they have no supervised token "
            f"within their first {config.seq_len} tokens (--seq-len)"
            f"{refused}"
        )
    return "\n".join(lines)


def _train(
    trainer: Trainer,
    folder: RunFolder,
    tok: PreTrainedTokenizerFast,
    metadata: Record,
    *,
    rows: Rows,
    note: str,
    write: Callable[[nn.Module], None],
) -> Run:
    """Run a trainer and fill its run folder."""

    def begin() -> None:
        if folder.checkpoint is None:
            new = not folder.path.exists()
            try:
                folder.begin({**metadata, **trainer.metadata()})
                # The run folder has its tokenizer from the first step on.
                save_tokenizer(tok, folder.path)
            except BaseException:
                if new:
                    shutil.rmtree(folder.path, ignore_errors=True)
                raise

    def finish() -> None:
        write(trainer.model)
        folder.finish({**metadata, **trainer.metadata()})
        prune_checkpoints(folder.path, keep=1)

    def say(text: str) -> None:
        if text and trainer.processes.is_main:
            trainer.progress.say(text)

    if (bad := left_out(rows.source)) and bad.count:
        metadata = {**metadata, "bad_records": bad.count}
    say(folder.note)
    say(note)
    trainer.processes.once(begin)
    if folder.checkpoint is not None:
        trainer.resume(folder.checkpoint)
        trainer.processes.once(
            lambda: folder.begin({**metadata, **trainer.metadata()})
        )
    history = trainer.fit()
    trainer.processes.once(finish)
    say(_skipped(rows, trainer.config))
    return Run(trainer.model, tok, history, folder.path)


# --- the stages ------------------------------------------------------------


@_own_threads()
def pretrain(
    out: str | Path,
    *,
    preset: str | Preset | None = None,
    model: ModelConfig | Mapping[str, Any] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    data: Data | None = None,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    packed: bool | None = None,
    optimizer: str | OwnOptimizer | None = None,
    lr: float | None = None,
    schedule: str | OwnSchedule | None = None,
    save_every: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    validate: Check | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    pth: bool | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Pretrain a model: a new one, or one that already exists.

    Parameters
    ----------
    out : path
        The run folder; must be new, unless `resume` is true.
    preset : {"tiny", "t4", "small", "base"} or Preset, optional
        Shape and settings to start from. By default, those of the base or
        ones that suit it, those of the preset nearest to `model` in size, or
        ``tiny``.
    model : ModelConfig or mapping, optional
        The shape, or fields that override the preset's shape.
    config : TrainConfig or mapping, optional
        All settings, or fields that override the preset's settings.
    data
        ``microworld`` (the default), ``microworld:zh``, paths of files or
        folders of texts (``.txt``, ``.jsonl``, ``.parquet``, compressed or
        not), ``hf:owner/name``, records in memory, or a `Source`; see
        `data.parse_data`.
    base : path, optional
        A model's folder, whose weights, shape and tokenizer are used. The
        learning rate schedule starts over, with its warm-up.
    tokenizer : path, optional
        A tokenizer's folder; by default one is first trained on `data`.
    steps, batch_size, micro_batch_size, seq_len, packed, lr, save_every,
    device, dtype, seed
        See `TrainConfig`. Files are packed unless `packed` says otherwise.
    optimizer : {"muon", "adamw"} or callable, optional
        A callable takes the model and returns a `torch.optim.Optimizer`.
    schedule : {"linear", "cosine", "constant"} or callable, optional
        A callable takes the step, counted from 0, and returns the factor on
        the peak learning rates.
    validate : callable, optional
        Takes the model and returns a dict that is added to the log; by
        default, the loss on held-out records.
    callbacks : sequence of Callback
        See `minimind_core.callbacks`.
    resume : bool
        Continue from the last checkpoint of an unfinished run, or of a
        finished one that is given more `steps`. Arguments that are not given
        keep the values that the run started with.
    pth : bool, optional
        Also write MiniMind's native ``minimind.pth``.
    progress : bool
        Print the progress of training.
    **settings
        Any other field of `TrainConfig`.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError, DataError, PrecisionError, CheckpointError, OutputError
        Before anything is written, where possible.
    """
    settings |= _given(
        steps=steps, batch_size=batch_size, seq_len=seq_len, packed=packed,
        micro_batch_size=micro_batch_size, optimizer=optimizer, lr=lr,
        schedule=schedule, save_every=save_every, device=device,
        dtype=dtype, seed=seed,
    )  # fmt: skip
    own = _own_code(settings)
    was = recorded_settings(out, "pretrain") if resume else {}
    base = base if base is not None else was.get("base")
    preset = preset if preset is not None else was.get("preset")
    model = model if model is not None else was.get("model")
    tokenizer = tokenizer if tokenizer is not None else was.get("tokenizer")
    pth = was.get("pth", False) if pth is None else pth
    spec = parse_data(
        data if data is not None else was.get("data", "microworld")
    )
    if base is not None:
        for name, value in (("model", model), ("tokenizer", tokenizer)):
            if value is not None:
                raise ConfigError(
                    f"{name} cannot be given with a base, whose own is used"
                )
        shape = load_config(base)
        start = starting_settings(
            "pretrain", shape, read_metadata(base), preset
        )
        known_as = start.preset
    else:
        if preset is None and isinstance(model, ModelConfig):
            preset = nearest_preset(model)
        chosen = get_preset(preset if preset is not None else "tiny")
        shape = _shape(chosen, model)
        start = Start(chosen.pretrain)
        known_as = chosen.name
    if spec.language is None:
        start = replace(start, config=start.config.replace(packed=True))
    plan = _settle(start.config, was.get("config"), config, settings)
    spec = replace(spec, on_bad_record=plan.on_bad_record)
    _refuse_without_effect("pretrain", plan)
    _refuse_unused(plan, own, config, settings)
    resolve(plan.device, plan.dtype)  # raises for a device not there
    folder = open_folder(out, resume=resume, steps=plan.steps)
    if folder.finished:
        return _finished(folder, progress)
    source = open_source(spec, "text", seed=plan.seed)
    if base is not None:
        net, tok = load_model(base)
        _require_room(net.config, plan)
        torch.manual_seed(plan.seed)
    else:
        if folder.checkpoint is not None:
            tok = load_tokenizer(folder.path)
        elif tokenizer is not None:
            tok = load_tokenizer(tokenizer)
        else:
            tok = run_once(
                lambda: train_tokenizer(
                    tokenizer_texts(spec), shape.vocab_size
                )
            )
            model = None
        shape = _with_vocabulary(shape, tok, model)
        _require_room(shape, plan)
        _require_memory(shape)
        torch.manual_seed(plan.seed)
        net = MiniMind(shape)
    source, encode = _encoded(
        source, document_encoder(tok), tok, progress=progress
    )
    rows = Rows(
        source, encode, seq_len=plan.seq_len, packed=plan.packed,
        seed=plan.seed,
    )  # fmt: skip
    state = {
        **portable({"data": spec.names()}, folder.path),
        "tokenizer": tokenizer_digest(tok),
    }
    if base is not None:
        state["base"] = weights_digest(net.parameters())
        rows.drawn = BEHIND if source.size is None else 0
    trainer = Trainer(
        net, rows, plan, precision=_choose(net.config, plan, folder),
        state=state,
        validate=_held_out(spec, validate, lambda: held_out_documents(
            tok, spec, seed=plan.seed, seq_len=plan.seq_len
        )),
        sample=sample_documents(tok, spec, seed=plan.seed),
        out=folder.path, title="pretraining", progress=progress,
        callbacks=callbacks, **own,
    )  # fmt: skip
    metadata = {
        "stage": "pretrain",
        "preset": known_as,
        "data": spec.names(),
        "base": base and str(base),
        "tokenizer": tokenizer and str(tokenizer),
        "pth": pth,
        "model": net.config.as_given(),
        "own_code": sorted(own),
    }
    return _train(
        trainer, folder, tok, metadata, rows=rows,
        note=_announced(start, plan, Path(base or ""), net.config),
        write=lambda trained: _write(trained, tok, folder.path, pth),
    )  # fmt: skip


def _encoded(
    source: Source,
    encode: Encoder,
    tok: PreTrainedTokenizerFast,
    *,
    progress: bool,
    **options: Any,
) -> tuple[Source, Encoder]:
    """Encode large files ahead, in the main process."""
    key = {"tokenizer": tokenizer_digest(tok), **options}
    say = print if progress else None

    def ahead() -> tuple[Source, Encoder]:
        return encode_ahead(source, encode, key=key, say=say)

    processes = join_processes()
    if processes.world > 1:
        # The others wait, and then read what the main process has written.
        processes.once(lambda: len(ahead()))
    return ahead()


def _write(
    model: nn.Module, tok: PreTrainedTokenizerFast, path: Path, pth: bool
) -> None:
    assert isinstance(model, MiniMind)
    save_model(model, tok, path, pth=pth)


@_own_threads()
def sft(
    base: str | Path,
    out: str | Path,
    *,
    preset: str | Preset | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    data: Data | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    optimizer: str | OwnOptimizer | None = None,
    lr: float | None = None,
    schedule: str | OwnSchedule | None = None,
    replay: float | None = None,
    save_every: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    validate: Check | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    pth: bool | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Fine-tune a pretrained model on conversations.

    Parameters
    ----------
    base : path
        The folder of the pretrained model: a run, or any model that
        `load_model` opens. Its shape and tokenizer are kept.
    out : path
        The new run folder.
    preset : str or Preset, optional
        Preset whose settings to start from; by default, those of the base. An
        imported base gets settings that suit its size, which are shown
        before training starts.
    config : TrainConfig or mapping, optional
        All settings, or fields that override the preset's settings.
    data
        ``microworld`` (the default), ``microworld:zh``, files of
        ``{"conversations": [{"role": ..., "content": ...}, ...]}`` or of
        another format that `data.parse_data` reads, such records in memory,
        or a `Source`.
    replay : float, optional
        Share of rows taken from the base's pretraining data, so that it is
        not forgotten; with 0 that data is not needed.
    steps, batch_size, micro_batch_size, seq_len, optimizer, lr, schedule,
    save_every, device, dtype, seed, validate, callbacks, resume, pth,
    progress, **settings
        As in `pretrain`.

    Returns
    -------
    Run
    """
    settings |= _given(
        steps=steps, batch_size=batch_size, seq_len=seq_len, lr=lr,
        micro_batch_size=micro_batch_size, optimizer=optimizer,
        schedule=schedule, replay=replay, save_every=save_every,
        device=device, dtype=dtype, seed=seed,
    )  # fmt: skip
    own = _own_code(settings)
    was = recorded_settings(out, "sft") if resume else {}
    preset = preset if preset is not None else was.get("preset")
    pth = was.get("pth", False) if pth is None else pth
    spec = parse_data(
        data if data is not None else was.get("data", "microworld")
    )
    shape, before = load_config(base), read_metadata(base)
    start = starting_settings("sft", shape, before, preset)
    plan = _settle(start.config, was.get("config"), config, settings)
    _require_room(shape, plan)
    spec = replace(spec, on_bad_record=plan.on_bad_record)
    _refuse_without_effect("sft", plan)
    _refuse_unused(plan, own, config, settings)
    resolve(plan.device, plan.dtype)  # raises for a device not there
    folder = open_folder(out, resume=resume, steps=plan.steps)
    if folder.finished:
        return _finished(folder, progress)
    source = open_source(spec, "conversations", seed=plan.seed)
    old = _replayed(base, before, plan) if plan.replay else None
    net, tok = load_model(base)
    source, encode = _encoded(
        source, conversation_encoder(tok, plan.seq_len), tok,
        progress=progress, seq_len=plan.seq_len,
    )  # fmt: skip
    rows = Rows(source, encode, seq_len=plan.seq_len, seed=plan.seed)
    stream: RowStream = rows
    if old is not None:
        documents = Rows(
            old, document_encoder(tok), seq_len=plan.seq_len, seed=plan.seed
        )
        documents.drawn = BEHIND if old.size is None else 0
        stream = Mixture(stream, documents, plan.replay, plan.seed)
    torch.manual_seed(plan.seed)
    trainer = Trainer(
        net, stream, plan, precision=_choose(shape, plan, folder),
        validate=_held_out(spec, validate, lambda: held_out_conversations(
            tok, spec, seed=plan.seed, seq_len=plan.seq_len
        )),
        out=folder.path, title="fine-tuning", progress=progress,
        state={
            **portable({"data": spec.names()}, folder.path),
            "base": weights_digest(net.parameters()),
            "tokenizer": tokenizer_digest(tok),
        },
        callbacks=callbacks, **own,
    )  # fmt: skip
    metadata = {
        "stage": "sft",
        "preset": start.preset,
        "data": spec.names(),
        "trained_on": training_data(before),
        "base": str(base),
        "pth": pth,
        "model": shape.as_given(),
        "own_code": sorted(own),
    }
    return _train(
        trainer, folder, tok, metadata, rows=rows,
        note=_announced(start, plan, Path(base), shape),
        write=lambda trained: _write(trained, tok, folder.path, pth),
    )  # fmt: skip


def _replayed(base: str | Path, metadata: Record, plan: TrainConfig) -> Any:
    """Return the base's pretraining data, to be replayed."""
    if not metadata.get("data"):
        raise ConfigError(
            f"{base} does not say what it was pretrained on, so that data "
            "cannot be replayed; use --replay 0"
        )
    was = (metadata.get("train") or {}).get("on_bad_record")
    try:
        return open_source(
            metadata["data"], "text", seed=plan.seed,
            on_bad_record="skip" if was == "skip" else plan.on_bad_record,
        )  # fmt: skip
    except DataError as error:
        raise DataError(
            f"{error} (this is the pretraining data of {base}, from which "
            f"{plan.replay:.0%} of the rows are replayed; to train without "
            "it, use --replay 0)"
        ) from None


LORA_DEFAULTS: dict[str, Any] = {
    "rank": 8, "alpha": 16.0, "targets": "all-linear", "dropout": 0.0,
    "use_rslora": False, "use_dora": False,
}  # fmt: skip


@_own_threads()
def train_lora(
    base: str | Path,
    out: str | Path,
    *,
    preset: str | Preset | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    data: Data | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | Sequence[str] | None = None,
    dropout: float | None = None,
    use_rslora: bool | None = None,
    use_dora: bool | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    optimizer: str | OwnOptimizer | None = None,
    lr: float | None = None,
    schedule: str | OwnSchedule | None = None,
    replay: float | None = None,
    save_every: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    validate: Check | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a LoRA adapter on an exported model.

    Parameters
    ----------
    base : path
        A Hugging Face folder, as `export_hf` writes it.
    out : path
        The adapter's folder, in peft's format. It stores the path of its base
        relative to itself, so that both can be moved together.
    preset, config
        As in `sft`.
    data
        ``microworld`` (its new style, the default), ``microworld:zh``,
        conversations as in `sft`, records in memory, or a `Source`.
    rank, alpha, dropout, use_rslora, use_dora
        See `peft.LoraConfig`; by default rank 8, alpha 16 and the others
        off.
    targets : "all-linear" or sequence of str, optional
        Names of the layers to adapt.
    replay : float, optional
        Share of rows from the microworld's ordinary conversations, so that
        the old style is not forgotten.
    steps, batch_size, micro_batch_size, seq_len, optimizer, lr, schedule,
    save_every, device, dtype, seed, validate, callbacks, resume, progress,
    **settings
        As in `pretrain`.

    Returns
    -------
    Run
        Its ``model`` is the peft model, with the adapter active.

    Raises
    ------
    ConfigError, DataError, PrecisionError, CheckpointError, OutputError
    """
    base, out = Path(base), Path(out)
    settings |= _given(
        steps=steps, batch_size=batch_size, seq_len=seq_len, lr=lr,
        micro_batch_size=micro_batch_size, optimizer=optimizer,
        schedule=schedule, replay=replay, save_every=save_every,
        device=device, dtype=dtype, seed=seed,
    )  # fmt: skip
    own = _own_code(settings)
    was = recorded_settings(out, "lora") if resume else {}
    preset = preset if preset is not None else was.get("preset")
    spec = parse_data(
        data if data is not None else was.get("data", "microworld")
    )
    adapter = {
        name: was.get(name, default)
        for name, default in LORA_DEFAULTS.items()
    } | _given(
        rank=rank, alpha=alpha, dropout=dropout, use_rslora=use_rslora,
        use_dora=use_dora, targets=targets,
    )  # fmt: skip
    if not isinstance(adapter["targets"], str):
        adapter["targets"] = list(adapter["targets"])
    if not isinstance(adapter["rank"], int) or adapter["rank"] < 1:
        raise ConfigError(f"rank must be at least 1, not {adapter['rank']}")
    shape = load_config(base)
    check_targets(adapter["targets"], shape)
    before = read_metadata(base)
    start = starting_settings("lora", shape, before, preset)
    plan = _settle(start.config, was.get("config"), config, settings)
    _require_room(shape, plan)
    spec = replace(spec, on_bad_record=plan.on_bad_record)
    _refuse_without_effect("lora", plan)
    _refuse_unused(plan, own, config, settings)
    resolve(plan.device, plan.dtype)  # raises for a device not there
    folder = open_folder(out, resume=resume, steps=plan.steps)
    if folder.finished:
        return _finished(folder, progress, load_adapter)
    source = open_source(spec, "skill", seed=plan.seed)
    tok = load_tokenizer(base)
    check_tokenizer(tok, shape, str(base))
    own_encoder = conversation_encoder(tok, plan.seq_len)
    source, encode = _encoded(
        source, own_encoder, tok, progress=progress, seq_len=plan.seq_len
    )
    rows = Rows(source, encode, seq_len=plan.seq_len, seed=plan.seed)
    stream: RowStream = rows
    if plan.replay:
        language = spec.language or "en"
        world = "microworld" if language == "en" else f"microworld:{language}"
        old = open_source(world, "conversations", seed=plan.seed)
        kept = Rows(old, own_encoder, seq_len=plan.seq_len, seed=plan.seed)
        stream = Mixture(stream, kept, plan.replay, plan.seed)
    torch.manual_seed(plan.seed)
    model = add_adapter(base, **adapter)
    trainer = Trainer(
        model, stream, plan, precision=_choose(shape, plan, folder),
        validate=_held_out(spec, validate, lambda: held_out_conversations(
            tok, spec, seed=plan.seed, seq_len=plan.seq_len, kind="skill"
        )),
        out=out, title="LoRA", progress=progress,
        state={
            **portable({"data": spec.names()}, out),
            **adapter,
            "base": weights_digest(
                p for p in model.parameters() if not p.requires_grad
            ),
            "tokenizer": tokenizer_digest(tok),
        },
        callbacks=callbacks, **own,
    )  # fmt: skip
    metadata = {
        "stage": "lora",
        "preset": start.preset,
        "data": spec.names(),
        "trained_on": training_data(before),
        "base": str(base),
        **adapter,
        "model": shape.as_given(),
        "own_code": sorted(own),
    }
    return _train(
        trainer, folder, tok, metadata, rows=rows,
        note=_announced(start, plan, base, shape),
        write=lambda trained: save_adapter(
            trained, tok, base, out, {**metadata, **trainer.metadata()}
        ),
    )  # fmt: skip


# --- all of it -------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """The folders of a journey, and how long each stage took.

    Attributes
    ----------
    path : Path
    seconds : dict of str to float
        Time of each stage, in order: tokenizer, pretrain, sft, hf, lora,
        merged.
    """

    path: Path
    seconds: dict[str, float]

    def folder(self, stage: str) -> Path:
        """The folder of one stage."""
        return self.path / stage


def run_journey(
    out: str | Path,
    *,
    preset: str | Preset = "tiny",
    data: Data = "microworld",
    text: Data | None = None,
    chat: Data | None = None,
    lora_chat: Data | None = None,
    steps: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    on_bad_record: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Journey:
    """Run all stages, from raw text to a merged, LoRA-adapted chat model.

    Parameters
    ----------
    out : path
        Receives the folders ``tokenizer``, ``pretrain``, ``sft``, ``hf``,
        ``lora`` and ``merged``; it may be moved afterwards.
    preset : {"tiny", "t4", "small", "base"} or Preset
        Shape, and the settings of each stage.
    data
        ``microworld`` or ``microworld:zh``, for data not given below.
    text, chat, lora_chat : paths, optional
        Your own documents, conversations, and conversations for LoRA.
        Without `lora_chat`, every tenth conversation of `chat` is kept for
        it and not used in fine-tuning.
    steps : int, optional
        Optimizer steps of each of the three trainings.
    device, dtype, seed
        As in `pretrain`.
    on_bad_record : {"stop", "skip"}, optional
        See `TrainConfig`; for every stage, the tokenizer's training included.
    resume : bool
        Continue a journey that was stopped.
    progress : bool
        Print each stage and the progress of each training.

    Returns
    -------
    Journey

    Raises
    ------
    MiniMindError
        As `pretrain`, `sft`, `export_hf`, `train_lora` and `merge_lora` do.
    """
    out = Path(out)
    chosen = get_preset(preset)
    resolve(device or "auto", dtype or "auto")
    world = parse_data(data)
    chosen_text = parse_data(text) if text is not None else world
    chosen_chat = parse_data(chat) if chat is not None else world
    chosen_lora = chosen_chat
    if lora_chat is not None:
        chosen_lora = parse_data(lora_chat)
    elif chosen_chat.paths and not chosen_chat.part:
        chosen_lora = replace(chosen_chat, part="tenth")
        chosen_chat = replace(chosen_chat, part="rest")
    if on_bad_record is not None:
        chosen_text, chosen_chat, chosen_lora = (
            replace(one, on_bad_record=on_bad_record)
            for one in (chosen_text, chosen_chat, chosen_lora)
        )
    # Check every file to its end before any training starts.
    open_source(chosen_text, "text")
    open_source(chosen_chat, "conversations")
    open_source(chosen_lora, "skill")
    if not resume:
        run_once(lambda: require_new(out))
    common: dict[str, Any] = {
        "device": device, "dtype": dtype, "seed": seed, "resume": resume,
        "steps": steps, "progress": progress, "preset": chosen,
        **_given(on_bad_record=on_bad_record),
    }  # fmt: skip

    def make_tokenizer() -> None:
        texts = tokenizer_texts(chosen_text, chosen_chat)
        train_tokenizer(texts, chosen.vocab_size, out=out / "tokenizer")

    def count(plan: TrainConfig) -> str:
        return f"{steps if steps is not None else plan.steps} steps"

    stages: dict[str, tuple[str, Callable[[], object]]] = {
        "tokenizer": (
            f"a tokenizer of at most {chosen.vocab_size} tokens, from "
            f"{chosen_text}",
            make_tokenizer,
        ),
        "pretrain": (
            f"a new model learns to continue text: {count(chosen.pretrain)} "
            f"on {chosen_text}",
            lambda: pretrain(
                out / "pretrain", data=chosen_text,
                tokenizer=out / "tokenizer", **common,
            ),
        ),
        "sft": (
            f"it learns to answer: {count(chosen.sft)} on {chosen_chat}",
            lambda: sft(
                out / "pretrain", out / "sft", data=chosen_chat, **common
            ),
        ),
        "hf": (
            "the same model in the Hugging Face format",
            lambda: export_hf(out / "sft", out / "hf"),
        ),
        "lora": (
            f"an adapter learns a new style: {count(chosen.lora)} on "
            f"{chosen_lora}",
            lambda: train_lora(
                out / "hf", out / "lora", data=chosen_lora, **common
            ),
        ),
        "merged": (
            "the adapter is merged into the model",
            lambda: merge_lora(out / "lora", out / "merged"),
        ),
    }  # fmt: skip

    def say(text: str) -> None:
        if progress:
            run_once(lambda: print(text, flush=True))

    seconds: dict[str, float] = {}
    trained = {"pretrain", "sft", "lora"}
    for number, (name, (about, make)) in enumerate(stages.items(), 1):
        started = time.perf_counter()
        say(f"{number}/{len(stages)} {name}: {about}")
        if name in trained:
            make()
        # The other folders are written atomically, so that those that exist
        # need not be made again.
        elif not (resume and (out / name).exists()):
            run_once(make)
        seconds[name] = round(time.perf_counter() - started, 1)
        say(f"    {seconds[name]:.1f} s, in {out / name}")
    return Journey(out, seconds)
