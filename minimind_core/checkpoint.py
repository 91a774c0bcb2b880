"""Model folders and atomic, verified checkpoints.

    from minimind_core.loading import load_model
    model, tokenizer = load_model("runs/pretrain")

A *run folder* is a Hugging Face model folder (``config.json``,
``model.safetensors``, the tokenizer) that also holds ``minimind.json``,
``log.jsonl`` and ``checkpoints/``. Weights are always saved in float32,
because half precision would round small updates away. A folder gets its final
name only when it is complete, and a file that does not fit the model is an
error that names what is missing, never a partial load.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minimind_core.chat import stop_token_ids
from minimind_core.config import ModelConfig
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.files import (
    atomic_folder,
    discard,
    flush,
    move,
    read_json,
    write_json,
    writing,
)
from minimind_core.model import MiniMind
from minimind_core.sharding import Make, is_sharded, read_tensors
from minimind_core.tokenizer import FILES as TOKENIZER_FILES
from minimind_core.tokenizer import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RUN_FILE = "minimind.json"
LOG_FILE = "log.jsonl"
WEIGHTS = "model.safetensors"
OLD_WEIGHTS = "pytorch_model.bin"
NATIVE_WEIGHTS = "minimind.pth"
CHECKPOINTS = "checkpoints"
SHARDS = "shards"
RUN_FORMAT = 1
"""The layout of run folders and checkpoints, written into both as
``format``. It increases when code for the old layout would misread the
new one."""


def check_format(values: Mapping[str, Any], where: str | Path) -> None:
    """Raise an error for a run or checkpoint of another format version.

    Parameters
    ----------
    values : mapping
        Content of its JSON file. Without a ``format`` it was written before
        formats were numbered.
    where : path
        Named in the error.

    Raises
    ------
    CheckpointError
        If the format is older or newer than this version reads.
    """
    found = values.get("format", 0)
    if found == RUN_FORMAT:
        return
    if isinstance(found, int) and found < RUN_FORMAT:
        raise CheckpointError(
            f"{where}: has format {found}, which an older version of "
            f"minimind_core wrote; this one reads format {RUN_FORMAT}. "
            "Install the older version, or start a new run"
        )
    raise CheckpointError(
        f"{where}: has format {found}, which a newer version of "
        f"minimind_core wrote; this one reads format {RUN_FORMAT}. "
        "Update minimind_core"
    )


# --- weights ---------------------------------------------------------------


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict to save: float32, on the CPU, tied weights once.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or any module.

    Returns
    -------
    dict of str to Tensor
    """
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", 0)
    return {
        name: _full(tensor)
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def _full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).clone()


def save_model(
    model: MiniMind,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    *,
    pth: bool = False,
) -> None:
    """Write weights, config and tokenizer as a Hugging Face folder.

    Parameters
    ----------
    model : MiniMind
    tokenizer : PreTrainedTokenizerFast
    folder : path
        Created if it does not exist. Each file is replaced atomically.
    pth : bool
        Also write MiniMind's native ``minimind.pth``, a plain state dict
        that upstream's code loads strictly, so it can hold nothing else.
        Settings that the weights do not reveal, such as the rotary base, are
        in the ``config.json`` beside it, which `import_checkpoint` reads.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    folder = Path(folder)
    partial = folder / ".saving"
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            state = weights_of(model)
            write_package(partial, model.config, state, tokenizer)
            if pth:
                head = _full(model.lm_head.weight)
                native = {**state, "lm_head.weight": head}
                torch.save(native, partial / NATIVE_WEIGHTS)
            flush(partial)
            for file in sorted(partial.iterdir()):
                move(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_package(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
) -> None:
    """Write the files of a Hugging Face model into an existing folder.

    Run folders, exports and merged models all consist of these.

    Parameters
    ----------
    folder : Path
    config : ModelConfig
    state : mapping of str to Tensor
    tokenizer : PreTrainedTokenizerFast
    format : {"safetensors", "bin"}
    dtype : {"float32", "bfloat16", "float16"}
        The dtype in which the weights are stored.
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
    write_json(
        folder / "generation_config.json",
        generation_config(config, tokenizer),
    )
    save_tokenizer(tokenizer, folder)


def generation_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Return the generation config, which lets ``generate`` stop.

    Returns
    -------
    dict
        ``eos_token_id`` is a list where the tokenizer's chat template ends
        a turn with another token than the end of a text.
    """
    stops = {config.eos_token_id, *stop_token_ids(tokenizer)}
    ends = sorted(stops, key=lambda token: token != config.eos_token_id)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": config.pad_token_id,
    }


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a model folder, as they were saved.

    Reads ``model.safetensors``, its sharded form, ``pytorch_model.bin``
    and its sharded form, in this order.

    Raises
    ------
    CheckpointError
        If there are no weights, or a file is damaged.
    """
    folder = Path(folder)
    for name in (WEIGHTS, OLD_WEIGHTS):
        if (folder / name).exists():
            return read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            state: dict[str, Tensor] = {}
            for file in _shards(index):
                state.update(read_weight_file(folder / file))
            return state
    raise CheckpointError(
        f"{folder}: no weights here (looked for {WEIGHTS} and {OLD_WEIGHTS})"
    )


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of them in its own folder."""
    try:
        names = read_json(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(names, dict) or not names or not all(
        isinstance(name, str) for name in names.values()
    ):
        raise CheckpointError(
            f"{index}: damaged (weight_map must say for each tensor in which "
            "file it is)"
        )
    for name in names.values():
        # A package from elsewhere must not name files of this machine.
        if name in ("", ".", "..") or {"/", "\\", "\0", ":"} & set(name):
            raise CheckpointError(
                f"{index}: names the file {name!r}, which is not in its "
                "folder; weights are only read from there"
            )
    return sorted(set(names.values()))


def read_weight_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors``, ``.bin`` or ``.pth`` file.

    From a training checkpoint, which also holds an optimizer and more, only
    the model's weights are read.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or holds anything but tensors.
    """
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only, because reading an arbitrary pickle may run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:
        # A file that is not a complete pickle can raise almost any
        # exception: KeyError, EOFError, UnpicklingError.
        raise _damaged(path, error) from error
    for name in _MODEL_PARTS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise CheckpointError(
            f"{path}: not a plain state dict of tensors; write one with "
            "torch.save(model.state_dict(), path)"
        )
    return state


_MODEL_PARTS = ("model", "state_dict", "model_state_dict")
"""Keys under which training checkpoints keep the model's weights."""


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if "Weights only load failed" in str(error):
        return CheckpointError(
            f"{path}: damaged, or it holds Python objects beside tensors, "
            "which are not loaded because they may run code; write the "
            "weights alone: torch.save(model.state_dict(), path)"
        )
    reason = str(error).splitlines()[0][:120] if str(error) else type(error)
    return CheckpointError(
        f"{path}: damaged, cut short or not a weights file ({reason})"
    )


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], where: str
) -> None:
    """Load a state dict strictly, as float32.

    Parameters
    ----------
    model : nn.Module
    state : mapping of str to Tensor
    where : str
        Named in errors.

    Raises
    ------
    CheckpointError
        Naming each tensor that is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    found = dict(state)
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", 0)
    if tied:
        embedding = found.get("model.embed_tokens.weight")
        head = found.get("lm_head.weight")
        if embedding is None:
            pass  # reported below, with everything else that is missing
        elif head is None:
            found["lm_head.weight"] = embedding
        elif not torch.equal(head, embedding):
            raise CheckpointError(
                f"{where}: the config ties lm_head to the embedding, but "
                "the two differ: set tie_word_embeddings to false"
            )
    problems = [f"{n} is missing" for n in wanted if found.get(n) is None]
    problems += [f"{n} is unknown" for n in found if n not in wanted]
    problems += [
        f"{n} has shape {tuple(found[n].shape)}, not {tuple(t.shape)}"
        for n, t in wanted.items()
        if found.get(n) is not None and found[n].shape != t.shape
    ]
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if problems[5:] else ""
        raise CheckpointError(
            f"{where}: the weights do not fit the config: {shown}{more}"
        )
    full = {n: t.float() if t.is_floating_point() else t
            for n, t in found.items()}  # fmt: skip
    model.load_state_dict(full, strict=True)


def weights_digest(parameters: Iterable[Tensor]) -> str:
    """Return a digest of the weights, to tell two bases apart.

    Parameters
    ----------
    parameters : iterable of Tensor
        Such as ``model.parameters()``; of any dtype.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for parameter in parameters:
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# --- checkpoints -----------------------------------------------------------


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WEIGHTS = (WEIGHTS, OLD_WEIGHTS, "adapter_model.safetensors")
_TEXTS = ("config.json", "adapter_config.json", *TOKENIZER_FILES)


def file_digests(folder: Path) -> dict[str, str]:
    """The digest of each file that a model's output depends on."""
    return {
        name: _digest(folder / name)
        for name in (*_WEIGHTS, *_TEXTS)
        if (folder / name).is_file()
    }


def check_digests(folder: str | Path) -> None:
    """Compare the files of a model folder with what was written.

    Parameters
    ----------
    folder : path
        Without digests in its ``minimind.json``, nothing is compared.

    Raises
    ------
    CheckpointError
        If the weights have changed: one flipped bit in them gives no error
        but other answers.

    Warns
    -----
    UserWarning
        If a config, the tokenizer or its template has changed, because these
        are also changed on purpose.
    """
    folder = Path(folder)
    path = folder / RUN_FILE
    try:
        told = read_json(path).get("files") if path.exists() else None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    told = told if isinstance(told, dict) else {}
    changed = [
        name
        for name in (*_WEIGHTS, *_TEXTS)
        if name in told
        and (folder / name).is_file()
        and _digest(folder / name) != told[name]
    ]
    for name in changed:
        if name in _WEIGHTS:
            raise CheckpointError(
                f"{folder / name}: changed since it was written, so it is "
                "damaged or from elsewhere; restore it, or if it was changed "
                f'on purpose, remove "files" from {path}'
            )
    if changed:
        warnings.warn(
            f"{folder}: {', '.join(changed)} changed since the model was "
            "written, so its output may be another",
            UserWarning,
            stacklevel=3,
        )


def begin_shards(run: str | Path, step: int) -> Path:
    """Make an empty folder for what all processes write of a checkpoint.

    Parameters
    ----------
    run : path
        The run folder.
    step : int

    Returns
    -------
    Path
        For `sharding.write_tensors`, and then for `save_checkpoint`. Until
        then no reader sees it.
    """
    folder = Path(run) / CHECKPOINTS
    # Remove leftovers of processes that were killed here.
    for part in folder.glob(".shards_*"):
        shutil.rmtree(part, ignore_errors=True)
    shards = folder / f".shards_{step:08d}"
    with writing(shards):
        shards.mkdir(parents=True)
    return shards


def save_checkpoint(
    run: str | Path,
    step: int,
    weights: Mapping[str, Tensor] | Path,
    training: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write everything that a run needs to continue exactly.

    Parameters
    ----------
    run : path
        The run folder.
    step : int
        Optimizer steps done.
    weights : mapping of str to Tensor, or Path
        The folder of `begin_shards`, if all processes have written their
        parts of the weights and the optimizer's state into it. It is moved.
    training : mapping
        State that torch serialises: optimizer, scaler, random state.
    state : mapping
        State that JSON can hold: data position, configs.
    keep : int
        How many of the newest checkpoints to keep.

    Returns
    -------
    Path
        The checkpoint's folder.
    """
    from safetensors.torch import save_file

    folder = Path(run) / CHECKPOINTS
    out = folder / f"step_{step:08d}"
    # Remove leftovers of a process that was killed here.
    for part in (out, *folder.glob(".step_*")):
        shutil.rmtree(part, ignore_errors=True)
    with atomic_folder(out) as partial:
        if isinstance(weights, Path):
            move(weights, partial / SHARDS)
        else:
            save_file(dict(weights), partial / WEIGHTS)
        torch.save(dict(training), partial / "training.pt")
        described = {"format": RUN_FORMAT, "step": step, **state}
        write_json(partial / "state.json", described)
        sums = {
            file.relative_to(partial).as_posix(): _digest(file)
            for file in sorted(partial.rglob("*"))
            if file.is_file()
        }
        write_json(partial / "sha256.json", sums)
    prune_checkpoints(run, keep)
    return out


def prune_checkpoints(run: str | Path, keep: int) -> None:
    """Remove all but the newest checkpoints of a run.

    Parameters
    ----------
    run : path
        The run folder.
    keep : int
        How many to keep, at least 1.
    """
    for old in checkpoints(run)[:-keep]:
        discard(old)


def checkpoints(run: str | Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first.

    An incomplete checkpoint, which a killed process was writing, has another
    name and is not among them.
    """
    return sorted((Path(run) / CHECKPOINTS).glob("step_*"))


def load_checkpoint(
    folder: str | Path, make: Make | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read a checkpoint, verifying the digest of each file.

    One that many processes wrote is read by any number of them, also by one.

    Parameters
    ----------
    folder : path
    make : callable, optional
        Where to read the parts of a sharded checkpoint into, by name
        (``weights.NAME`` and ``optimizer.NUMBER.KEY``), shape and dtype; see
        `sharding.read_tensors`.

    Returns
    -------
    weights, training, state : dict
        As given to `save_checkpoint`.

    Raises
    ------
    CheckpointError
        If a file is missing or has changed, or if another version wrote
        the checkpoint.
    """
    folder = Path(folder)
    advice = f"remove {folder} to continue from the one before, if any"
    try:
        sums = read_json(folder / "sha256.json")
    except ConfigError as error:
        raise CheckpointError(f"{error}; {advice}") from None
    shards = any(name.startswith(f"{SHARDS}/") for name in sums)
    needed = {"training.pt", "state.json"} | (set() if shards else {WEIGHTS})
    missing = needed - sums.keys()
    for name, digest in {**sums, **dict.fromkeys(missing)}.items():
        file = folder / name
        if not file.exists() or _digest(file) != digest:
            raise CheckpointError(
                f"{file}: missing, cut short or changed since it was "
                f"written; {advice}"
            )
    state = read_json(folder / "state.json")
    check_format(state, folder)
    try:
        training = torch.load(
            folder / "training.pt", map_location="cpu", weights_only=True
        )
    except Exception as error:  # as in `read_weight_file`
        raise _damaged(folder / "training.pt", error) from error
    if not shards:
        return read_weight_file(folder / WEIGHTS), training, state
    weights: dict[str, Tensor] = {}
    tensors = read_tensors(folder / SHARDS, *[make] if make else [])
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "weights":
            weights[rest] = tensor
        else:
            number, _, key = rest.partition(".")
            kept = training["optimizer"]["state"].setdefault(int(number), {})
            kept[key] = tensor
    return weights, training, state


def last_sound(run: str | Path) -> Path | None:
    """Return the newest readable checkpoint with only finite numbers.

    Parameters
    ----------
    run : path
        The run folder.

    Returns
    -------
    Path or None
        None if there is no such checkpoint.
    """
    for folder in reversed(checkpoints(run)):
        try:
            weights, training, _ = load_checkpoint(folder)
        except CheckpointError:
            continue
        if all_finite((weights, training["optimizer"])):
            return folder
    return None


def all_finite(values: Any) -> bool:
    """Whether every tensor in nested dictionaries and lists is finite.

    Of a sharded tensor, this process's part is looked at.
    This synchronises with the device only once.
    """
    found: dict[torch.device, list[Tensor]] = {}
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            if is_sharded(value):
                value = value.to_local()  # type: ignore[attr-defined]
            finite = value.detach().isfinite().all()
            found.setdefault(value.device, []).append(finite)
    return all(bool(torch.stack(flags).all()) for flags in found.values())
