"""How good a model is, in numbers that mean the same everywhere.

    from minimind_core.evaluation import evaluate
    evaluate("runs/sft")["exact_match"]["weather"]

Loss is given per token and per byte (which compares models with different
tokenizers), on the microworld also over the floor: the summed loss of
held-out stories over the summed negative log-probability with which the
world wrote them. Nothing can be below 1 except by chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from minimind_core.chat import encode_prompt, stop_token_ids
from minimind_core.data import (
    Data,
    DataSpec,
    Encoded,
    Row,
    Source,
    collate,
    conversation_encoder,
    count_labels,
    document_encoder,
    open_source,
    pack,
    parse_data,
)
from minimind_core.errors import ConfigError, DataError
from minimind_core.generate import (
    generate_tokens,
    pad_left,
    position_limit,
)
from minimind_core.loading import load_model
from minimind_core.precision import detect_device
from minimind_core.run import Run, read_metadata
from minimind_core.tokenizer import decode, special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

DOCUMENTS = 500
SAMPLES = 200
QUESTIONS = 100
BATCH = 50


class Loss(NamedTuple):
    """A summed loss and what it can be divided by.

    Attributes
    ----------
    nats : float
    tokens, bytes : int
        End tokens count as tokens, not as bytes.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def per_byte(self) -> float:
        """Nats per byte of UTF-8."""
        return self.nats / max(self.bytes, 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients, and everything back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# --- loss ------------------------------------------------------------------


def rows_loss(model: nn.Module, rows: Sequence[Row]) -> tuple[float, int]:
    """Summed loss, in float32, and number of labels of some rows.

    Rows of like length go together, so little is spent on padding.
    """
    device = _device(model)
    order = sorted(rows, key=lambda row: len(row.input_ids))
    total = torch.zeros((), dtype=torch.float64)
    with _evaluating(model):
        for at in range(0, len(order), BATCH):
            # Padding has no label and no attention, so any id will do.
            batch = collate(order[at : at + BATCH], 0, device)
            out = model(**batch, num_items_in_batch=1)
            total += out.loss.double().cpu()
    return float(total), count_labels(rows)


def document_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    seq_len: int | None = None,
) -> Loss:
    """Summed loss of documents, the end token included.

    Parameters
    ----------
    model : nn.Module
    tokenizer : PreTrainedTokenizerFast
    texts : sequence of str
    seq_len : int, optional
        A longer document is cut into pieces of so many tokens; the first
        token of a later piece is not predicted, so it is not counted.

    Returns
    -------
    Loss
    """
    limit = seq_len or position_limit(model)
    encoded = document_encoder(tokenizer)(list(texts))
    pieces = [
        Encoded(ids[at : at + limit], labels[at : at + limit])
        for ids, labels in (one for one in encoded if one is not None)
        for at in range(0, len(ids), limit)
    ]
    nats, tokens = rows_loss(model, pack(pieces, 0))
    return Loss(nats, tokens, sum(len(text.encode()) for text in texts))


def _first(source: Source, count: int) -> range:
    """The first indices of a source, at most `count`."""
    size = source.size
    return range(count if size is None else min(count, size))


def _held_out(
    data: DataSpec, kind: str, seed: int, count: int
) -> list[Any]:
    source = open_source(data, kind, seed=seed, held_out=True)
    return source.records(_first(source, count))


def held_out_documents(
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    *,
    seed: int,
    seq_len: int | None = None,
    count: int = 200,
) -> Callable[[nn.Module], dict[str, Any]]:
    """A check for the trainer: loss on documents it never sees.

    Returns
    -------
    callable
        Of a model; gives ``validation_loss`` (nats per token) and on the
        microworld ``loss_over_floor``.
    """
    source = open_source(data, "text", seed=seed, held_out=True)
    chosen = _first(source, count)
    texts = source.records(chosen)
    # Only a source whose grammar is known can tell the floor.
    floor = source.floor(chosen) if hasattr(source, "floor") else 0.0

    def check(model: nn.Module) -> dict[str, Any]:
        loss = document_loss(model, tokenizer, texts, seq_len=seq_len)
        found = {"validation_loss": loss.per_token}
        if floor:
            found["loss_over_floor"] = loss.nats / floor
            found["floor"] = floor / loss.tokens
        return found

    return check


def held_out_conversations(
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    *,
    seed: int,
    seq_len: int,
    kind: str = "conversations",
    count: int = 200,
) -> Callable[[nn.Module], dict[str, Any]]:
    """A check for the trainer: loss on answers it never sees.

    Returns
    -------
    callable
        Of a model; gives ``validation_loss`` in nats per supervised token.
    """
    records = _held_out(parse_data(data), kind, seed, count)
    encoded = conversation_encoder(tokenizer, seq_len)(records)
    rows = pack([one for one in encoded if one is not None], 0)

    def check(model: nn.Module) -> dict[str, Any]:
        if not rows:
            return {}
        nats, tokens = rows_loss(model, rows)
        return {"validation_loss": nats / tokens}

    return check


# --- samples ---------------------------------------------------------------


def sample_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    *,
    seed: int = 0,
    max_new_tokens: int = 160,
    temperature: float = 1.0,
) -> list[str]:
    """Documents the model writes from nothing but the begin token.

    Returns
    -------
    list of str
        One that does not end by itself ends with an ellipsis, which is in
        no story.
    """
    device = _device(model)
    generator = torch.Generator(device).manual_seed(seed)
    room = position_limit(model) - 1
    bos, eos, pad = special_ids(tokenizer)
    texts = []
    with _evaluating(model):
        for at in range(0, count, 100):
            size = min(100, count - at)
            start = torch.full((size, 1), bos)
            rows = generate_tokens(
                model,
                start.to(device),
                max_new_tokens=min(max_new_tokens, room),
                temperature=temperature,
                generator=generator,
                eos_token_id=eos,
                pad_token_id=pad,
            )
            for _, *row in rows.tolist():
                text = decode(tokenizer, row)
                texts.append(text if eos in row else text + "…")
    return texts


def sample_documents(
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    *,
    seed: int = 0,
    count: int = 24,
) -> Callable[[nn.Module], dict[str, Any]]:
    """A check for the trainer: what the model writes, and if it is valid.

    Returns
    -------
    callable
        Of a model; gives ``samples`` (the first four) and on the microworld
        ``valid_fraction`` of all.
    """
    source = open_source(data, "text", seed=seed)

    def check(model: nn.Module) -> dict[str, Any]:
        texts = sample_texts(model, tokenizer, count, seed=seed)
        found: dict[str, Any] = {"samples": texts[:4]}
        if hasattr(source, "valid_fraction"):
            found["valid_fraction"] = source.valid_fraction(texts)
        return found

    return check


# --- answers ---------------------------------------------------------------


def answer_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[dict[str, Any]]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 64,
) -> list[str | None]:
    """The most likely answers to some conversations, greedily.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or a Hugging Face or peft model.
    tokenizer : PreTrainedTokenizerFast
    prompts : sequence of list of dict
        Messages up to the question.
    max_new_tokens : int
        Fewer where the model's positions run out.
    batch_size : int

    Returns
    -------
    list of str or None
        None for a prompt that fills all of the model's positions and so
        leaves no room for an answer. It does not affect the other answers.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    room = position_limit(model)
    answers: list[str | None] = [None] * len(encoded)
    pad, stops = special_ids(tokenizer).pad, stop_token_ids(tokenizer)
    with _evaluating(model):
        for chosen in _batches(
            list(map(len, encoded)), batch_size, room, max_new_tokens
        ):
            rows = [encoded[i] for i in chosen]
            ids, mask = pad_left(rows, pad, str(_device(model)))
            out = generate_tokens(
                model, ids, attention_mask=mask, temperature=0.0,
                max_new_tokens=min(max_new_tokens, room - ids.size(1)),
                eos_token_id=stops, pad_token_id=pad,
            )  # fmt: skip
            for i, row in zip(chosen, out[:, ids.size(1) :], strict=True):
                ended = _until_end(row.tolist(), stops)
                answers[i] = decode(tokenizer, ended)
    return answers


def _batches(
    lengths: Sequence[int], batch_size: int, room: int, new: int
) -> Iterator[list[int]]:
    """Prompts of like length together, and close ones to the limit alone.

    A batch is padded to its longest prompt, which would otherwise take the
    room for answers away from the shorter ones.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ample = [i for i in order if lengths[i] + new <= room]
    for at in range(0, len(ample), batch_size):
        yield ample[at : at + batch_size]
    for i in order[len(ample) :]:
        if lengths[i] < room:
            yield [i]


def _until_end(ids: list[int], stops: Sequence[int]) -> list[int]:
    ends = (place for place, one in enumerate(ids) if one in stops)
    return ids[: next(ends, len(ids))]


class Quiz(Protocol):
    """A conversation whose right answers are known.

    `minimind_core.microworld.Conversation` is one.
    """

    @property
    def kinds(self) -> Sequence[str]:
        """The kind of question that each turn asks."""

    def prompt(self, turn: int) -> list[dict[str, Any]]:
        """The messages up to a turn's question."""

    def check(self, turn: int, answer: str) -> bool:
        """Whether an answer to a turn's question is right."""


def exact_match(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Quiz],
) -> dict[str, float]:
    """Share of right answers by kind of question.

    Each turn is asked with the right answers to the turns before it. A
    question that leaves no room for an answer counts as a wrong one.

    Parameters
    ----------
    model : nn.Module
    tokenizer : PreTrainedTokenizerFast
    conversations : sequence of Quiz

    Returns
    -------
    dict of str to float
    """
    asked = [
        (talk, turn)
        for talk in conversations
        for turn in range(len(talk.kinds))
    ]
    answers = answer_prompts(
        model, tokenizer, [talk.prompt(turn) for talk, turn in asked]
    )
    right: dict[str, list[bool]] = defaultdict(list)
    for (talk, turn), answer in zip(asked, answers, strict=True):
        # A prompt that leaves no room for an answer counts as unanswered.
        answered = answer is not None and talk.check(turn, answer)
        right[talk.kinds[turn]].append(answered)
    return {kind: sum(r) / len(r) for kind, r in sorted(right.items())}


# --- all of it -------------------------------------------------------------


def evaluate(
    run: Run | str | Path,
    *,
    data: Data | None = None,
    documents: int = DOCUMENTS,
    samples: int = SAMPLES,
    questions: int = QUESTIONS,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a model on data it was not trained on.

    Parameters
    ----------
    run : Run or path
        A run folder, a Hugging Face folder, or a LoRA adapter's folder.
    data : optional
        What to measure on, see `data.parse_data`; what the run was trained
        on if not given, or the microworld if that is not known.
    documents, samples, questions : int
        Held-out documents; free samples (microworld); questions of each
        kind (microworld, for a model that was fine-tuned).
    seed : int
        Of the samples, and of the training run whose held-out data it is.
    device : str
        See `precision.detect_device`; a `Run` stays where it is.

    Returns
    -------
    dict
        ``loss_per_token``, ``loss_per_byte`` (nats; float32); on the
        microworld ``loss_over_floor`` and ``valid_fraction``; where there
        are conversations ``exact_match`` by kind.

    Raises
    ------
    CheckpointError, ConfigError, DataError, PrecisionError
    """
    for name, value in (
        ("documents", documents),
        ("samples", samples),
        ("questions", questions),
    ):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    model, tokenizer, facts = _open(run, device)
    stage = facts.get("stage", "")
    spec = parse_data(data or facts.get("data") or "microworld")
    if spec.language is None:
        return _evaluate_files(model, tokenizer, spec, documents, seed)
    source: Any = open_source(spec, "text", seed=seed, held_out=True)
    chosen = _first(source, documents)
    loss = document_loss(model, tokenizer, source.records(chosen))
    texts = sample_texts(
        model, tokenizer, samples, seed=seed,
        max_new_tokens=position_limit(model),
    )  # fmt: skip
    found: dict[str, Any] = {
        "loss_per_token": loss.per_token,
        "loss_per_byte": loss.per_byte,
        "loss_over_floor": loss.nats / source.floor(chosen),
        "valid_fraction": source.valid_fraction(texts),
    }
    if stage != "pretrain":
        asked: Any = open_source(spec, "conversations", seed=seed)
        talks = asked.questions(
            questions, skill=stage in ("lora", "merged")
        )
        found["exact_match"] = exact_match(model, tokenizer, talks)
    return found


def _evaluate_files(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    spec: DataSpec,
    documents: int,
    seed: int,
) -> dict[str, Any]:
    try:
        texts = _held_out(spec, "text", seed, documents)
    except DataError as error:
        if "conversations" not in str(error):
            raise
    else:
        loss = document_loss(model, tokenizer, texts)
        return {
            "loss_per_token": loss.per_token,
            "loss_per_byte": loss.per_byte,
        }
    talks = _held_out(spec, "conversations", seed, documents)
    limit = position_limit(model)
    encoded = conversation_encoder(tokenizer, limit)(talks)
    rows = pack([one for one in encoded if one is not None], 0)
    nats, tokens = rows_loss(model, rows)
    said = [m["content"] or "" for t in talks for m in t
            if m["role"] == "assistant"]  # fmt: skip
    loss = Loss(nats, tokens, sum(len(text.encode()) for text in said))
    last = [t for t in talks if t[-1]["role"] == "assistant"]
    answers = answer_prompts(model, tokenizer, [t[:-1] for t in last])
    known = [t[-1]["content"] for t in last]
    right = [a == b for a, b in zip(answers, known, strict=True)]
    return {
        "loss_per_token": loss.per_token,
        "loss_per_byte": loss.per_byte,
        "exact_match": {"all": sum(right) / max(len(right), 1)},
    }


def _open(
    run: Run | str | Path, device: str
) -> tuple[Any, PreTrainedTokenizerFast, dict[str, Any]]:
    if isinstance(run, Run):
        return run.model, run.tokenizer, read_metadata(run.path)
    found = detect_device(device)
    device = found.type if device == "auto" else device
    model, tokenizer = load_model(run, device)
    return model, tokenizer, read_metadata(run)
