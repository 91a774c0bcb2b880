"""Evaluate models: loss, perplexity, accuracy and validity.

    from minimind_core.evaluation import evaluate
    evaluate("runs/sft")["exact_match"]["weather"]
    evaluate("runs/sft", data="mine.jsonl")["perplexity"]

The loss is given per token, with its standard error, and per byte, which
also compares models with different tokenizers. On the microworld it is also
given over the floor: the summed loss of held-out stories, divided by the
summed negative log-probability with which the world wrote them. No model can
be below 1 except by chance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_core.chat import IGNORE_INDEX, encode_prompt, stop_token_ids
from minimind_core.data import (
    HELD_OUT_EVERY,
    Data,
    DataSpec,
    Encoded,
    Messages,
    Row,
    Slice,
    Source,
    collate,
    conversation_encoder,
    count_labels,
    document_encoder,
    left_out,
    open_records,
    open_source,
    pack,
    parse_data,
    record_kind,
    spec_files,
    split_name,
)
from minimind_core.errors import ConfigError, DataError
from minimind_core.generate import (
    generate_tokens,
    pad_left,
    position_limit,
)
from minimind_core.loading import (
    ADAPTER_CONFIG,
    adapter_base,
    load_config,
    load_model,
)
from minimind_core.precision import detect_device
from minimind_core.run import Run, read_metadata, training_data
from minimind_core.tokenizer import decode, special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

DOCUMENTS = 500
SAMPLES = 200
QUESTIONS = 100

TOKENS = 2**14
"""Tokens per batch, padding included; a longer row is its own batch."""
LOGITS = 2**26
"""Logits per batch, 256 MiB in float32; this limits the number of tokens if
the vocabulary is large."""
LONGEST = 2048
"""Tokens per row if the row length in training is not known."""


class Loss(NamedTuple):
    """A summed loss, and the counts to normalise it by.

    Attributes
    ----------
    nats : float
    tokens, bytes : int
        End tokens count as tokens, not as bytes.
    records : int
        Documents or conversations.
    standard_error : float or None
        Of `per_token`, in nats, over the records; None for a single one.
    """

    nats: float
    tokens: int
    bytes: int
    records: int = 0
    standard_error: float | None = None

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def per_byte(self) -> float:
        """Nats per byte of UTF-8."""
        return self.nats / max(self.bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """All figures, under the names that `evaluate` uses."""
        mean = self.per_token
        return {
            "records": self.records,
            "tokens": self.tokens,
            "loss_per_token": mean,
            "standard_error": self.standard_error,
            # Beyond a loss of 709 the perplexity overflows a float.
            "perplexity": math.exp(min(mean, 709.0)),
            "loss_per_byte": self.per_byte,
            "bits_per_byte": self.per_byte / math.log(2),
        }


def standard_error(
    nats: Sequence[float], tokens: Sequence[int]
) -> float | None:
    """Standard error of a loss per token over independent records.

    Parameters
    ----------
    nats, tokens : sequence
        Summed loss and number of tokens of each record.

    Returns
    -------
    float or None
        None for fewer than two records.

    Notes
    -----
    The loss per token is a ratio of two sums over records, so this is the
    standard error of a ratio estimate (W. G. Cochran, Sampling Techniques,
    1977, chapter 6). Tokens of one document depend on one another, so an
    error computed over tokens would be too small.
    """
    count, whole = len(nats), sum(tokens)
    if count < 2 or not whole:
        return None
    mean = sum(nats) / whole
    spread = sum(
        (a - mean * b) ** 2 for a, b in zip(nats, tokens, strict=True)
    )
    return math.sqrt(count / (count - 1) * spread) / whole


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off, and restore them afterwards."""
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


def batches(rows: Sequence[Row], vocab_size: int) -> list[list[int]]:
    """Group rows into batches of similar length, shortest rows first.

    Similar lengths keep padding small. A batch has as many rows as `TOKENS`
    and `LOGITS` allow, so that memory does not grow with their length.

    Parameters
    ----------
    rows : sequence of Row
    vocab_size : int

    Returns
    -------
    list of list of int
        Indices of the rows of each batch; each index occurs once.
    """
    budget = min(TOKENS, LOGITS // vocab_size)
    found: list[list[int]] = []
    for place in sorted(
        range(len(rows)), key=lambda i: len(rows[i].input_ids)
    ):
        # The current row is the longest so far, so it sets the width.
        width = -(-len(rows[place].input_ids) // 8) * 8
        if found and (len(found[-1]) + 1) * width <= budget:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def row_losses(model: nn.Module, rows: Sequence[Row]) -> list[float]:
    """Compute the summed loss of each row, in nats.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or a Hugging Face or peft model.
    rows : sequence of Row

    Returns
    -------
    list of float
        Computed in float32 and added up in float64.
    """
    device = _device(model)
    losses = [0.0] * len(rows)
    vocab_size: Any = model.config.vocab_size  # type: ignore[union-attr]
    with _evaluating(model):
        for chosen in batches(rows, vocab_size):
            # Padding is not supervised or attended to: any id will do.
            batch = collate([rows[i] for i in chosen], 0, device)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits
            for i, nats in zip(
                chosen, _nats(logits, labels), strict=True
            ):
                losses[i] = nats
    return losses


def _nats(logits: Tensor, labels: Tensor) -> list[float]:
    each = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels.flatten(),
        reduction="none",
    )
    # Apple's GPUs have no float64, so the sums are made on the CPU.
    return each.cpu().double().view(labels.shape).sum(1).tolist()


def rows_loss(model: nn.Module, rows: Sequence[Row]) -> tuple[float, int]:
    """Return the summed loss and the number of supervised tokens."""
    return math.fsum(row_losses(model, rows)), count_labels(rows)


def _measure(
    model: nn.Module, rows: Sequence[Row], owners: Sequence[int], size: int
) -> Loss:
    """Measure the loss of rows, with its standard error over records.

    Parameters
    ----------
    model : nn.Module
    rows : sequence of Row
    owners : sequence of int
        Index of the record that each row belongs to.
    size : int
        Bytes of all records.
    """
    nats: dict[int, float] = defaultdict(float)
    tokens: dict[int, int] = defaultdict(int)
    losses = row_losses(model, rows)
    for owner, row, loss in zip(owners, rows, losses, strict=True):
        nats[owner] += loss
        tokens[owner] += count_labels([row])
    return Loss(
        math.fsum(nats.values()),
        sum(tokens.values()),
        size,
        len(nats),
        standard_error(list(nats.values()), list(tokens.values())),
    )


def document_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    seq_len: int | None = None,
) -> Loss:
    """Measure the loss of documents, including their end tokens.

    Parameters
    ----------
    model : nn.Module
    tokenizer : PreTrainedTokenizerFast
    texts : sequence of str
    seq_len : int, optional
        A longer document is cut into pieces of this many tokens, by default
        the number of the model's positions. The first token of a later
        piece is not predicted, so it is not counted.

    Returns
    -------
    Loss
    """
    limit = seq_len or position_limit(model)
    pieces, owners = [], []
    for owner, one in enumerate(document_encoder(tokenizer)(list(texts))):
        assert one is not None
        for at in range(0, len(one.input_ids), limit):
            ids = one.input_ids[at : at + limit]
            pieces.append(Encoded(ids, one.labels[at : at + limit]))
            owners.append(owner)
    size = sum(len(text.encode()) for text in texts)
    return _measure(model, pack(pieces, 0), owners, size)


def conversation_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Messages],
    *,
    seq_len: int | None = None,
) -> Loss:
    """Measure the loss of the assistant's answers in conversations.

    Parameters
    ----------
    model : nn.Module
    tokenizer : PreTrainedTokenizerFast
    conversations : sequence of list of dict
    seq_len : int, optional
        Turns that end beyond this many tokens, or beyond the model's
        positions, are left out. A conversation is left out completely, and
        not counted in the records, if its first answer is such a turn.

    Returns
    -------
    Loss
        Its bytes count the text of the supervised tokens.
    """
    limit = seq_len or position_limit(model)
    encoded = conversation_encoder(tokenizer, limit)(list(conversations))
    kept = [one for one in encoded if one is not None]
    size = 0
    for one in kept:
        said = [label for label in one.labels if label != IGNORE_INDEX]
        size += len(decode(tokenizer, said).encode())
    return _measure(model, pack(kept, 0), range(len(kept)), size)


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
    """Return a validation function: the loss on held-out documents.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    data
        See `data.parse_data`; its held-out part is measured.
    seed : int
        Of the run.
    seq_len : int, optional
        See `document_loss`.
    count : int
        Maximum number of documents.

    Returns
    -------
    callable
        Takes a model; returns ``validation_loss`` (nats per token) and on
        the microworld ``loss_over_floor``.
    """
    source = open_source(data, "text", seed=seed, held_out=True)
    chosen = _first(source, count)
    texts = source.records(chosen)
    # The floor is known only for a source with a known grammar.
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
    """Return a validation function: the loss on held-out answers.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    data
        See `data.parse_data`; its held-out part is measured.
    seed : int
        Of the run.
    seq_len : int
        See `conversation_loss`.
    kind : {"conversations", "skill"}
        See `data.open_source`.
    count : int
        Maximum number of conversations.

    Returns
    -------
    callable
        Takes a model; returns ``validation_loss`` in nats per supervised
        token, or an empty dict if no conversation fits.
    """
    spec = parse_data(data)
    records = _held_out(spec, kind, seed, count)
    skip = spec.on_bad_record == "skip"
    encoded = conversation_encoder(tokenizer, seq_len, skip=skip)(records)
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
    """Sample documents from the begin token.

    Returns
    -------
    list of str
        A document without an end token gets an ellipsis, which occurs in no
        story.
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
    """Return a function for the trainer that samples documents.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    data
        See `data.parse_data`.
    seed : int
        Seed of the samples.
    count : int
        Number of samples.

    Returns
    -------
    callable
        Takes a model; returns ``samples`` (the first four) and, on the
        microworld, the ``valid_fraction`` of all of them.
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
    """Answer several conversations by greedy decoding.

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
    """Group prompts of similar length; those near the limit stay alone.

    A batch is padded to its longest prompt, which would otherwise leave the
    shorter ones less room for their answers.
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
    """A conversation whose correct answers are known.

    `minimind_core.microworld.Conversation` is one.
    """

    @property
    def kinds(self) -> Sequence[str]:
        """The kind of question that each turn asks."""

    def prompt(self, turn: int) -> list[dict[str, Any]]:
        """The messages up to a turn's question."""

    def check(self, turn: int, answer: str) -> bool:
        """Whether an answer to a turn's question is correct."""


def exact_match(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Quiz],
) -> dict[str, float]:
    """Return the share of correct answers by kind of question.

    Each turn is asked with the correct answers to the turns before it. A
    question that leaves no room for an answer counts as wrong.

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
    every_record: bool = False,
    documents: int | None = None,
    samples: int | None = None,
    questions: int | None = None,
    seq_len: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    on_bad_record: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on data it was not trained on.

    Parameters
    ----------
    run : Run or path
        A run folder, a Hugging Face folder, or a LoRA adapter's folder.
    data : optional
        The data to measure on, see `data.parse_data`; if not given, the
        training data of the run. Only the held-out records of files that the
        run was trained on are measured, and all records of other files.
    every_record : bool
        Measure all records of the files, including those trained on.
    documents : int, optional
        Maximum number of documents or conversations. If not given, 500 for
        the microworld or for held-out records, and otherwise all of them.
    samples : int, optional
        Only for the microworld: number of texts to sample, 200 by default.
    questions : int, optional
        For the microworld and a fine-tuned model: number of questions of
        each kind. For files of conversations: number of those whose last
        answer is generated and compared. 100 by default.
    seq_len : int, optional
        Only for files: longest row, in tokens. If not given, the same as in
        training, or 2048 if that is unknown, but never more than the model
        has positions.
    seed : int, optional
        Only for the microworld: seed of the samples and the questions, and
        of the training run, which determines the held-out data. 0 by
        default.
    device : str
        See `precision.detect_device`; a `Run` stays where it is.
    on_bad_record : {"stop", "skip"}, optional
        Whether a record of a file that cannot be used is an error, or is left
        out and counted; if not given, as in the training of the run.

    Returns
    -------
    dict
        ``data`` and ``part`` ("held-out" or "all") say what was measured,
        ``records`` and ``tokens`` how much of it, and ``skipped``, for
        conversations, how many were too long for `seq_len`; ``bad_records``
        describes those that could not be used.
        ``loss_per_token``, with its ``standard_error`` over records, and
        ``loss_per_byte`` are in nats; ``perplexity`` and ``bits_per_byte``
        say the same in other units. On the microworld there are also
        ``loss_over_floor`` and ``valid_fraction``, and where there are
        conversations ``exact_match`` by kind.

    Raises
    ------
    ConfigError
        For a number below 1, or an option that does not apply.
    DataError
        If the data cannot be read or is not known, or if it is not known
        which of its records the run was trained on.
    CheckpointError, PrecisionError
    """
    for name, value in (
        ("documents", documents),
        ("samples", samples),
        ("questions", questions),
        ("seq_len", seq_len),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    path = run.path if isinstance(run, Run) else Path(run)
    if not isinstance(run, Run):
        here = detect_device(device)
        device = here.type if device == "auto" else device
        # A folder without a model is the first thing to be told.
        adapter = (path / ADAPTER_CONFIG).exists()
        load_config(adapter_base(path) if adapter else path)
    metadata = read_metadata(path)
    spec = _what_to_measure(path, metadata, data)
    was = (metadata.get("train") or {}).get("on_bad_record", "stop")
    spec = replace(spec, on_bad_record=on_bad_record or was)
    if spec.language is None:
        if samples is not None:
            raise ConfigError(
                "samples are judged by the microworld's rules; omit this "
                f"option for {spec}"
            )
        if seed is not None:
            raise ConfigError(
                "seed is for the microworld; which records of files are "
                "measured does not depend on it, and nothing is sampled"
            )
        records, kind, part = _choose(spec, metadata, every_record)
        if questions is not None and kind == "text":
            raise ConfigError(
                f"questions are for conversations; {spec} has documents"
            )
    else:
        if questions is not None and metadata.get("stage") == "pretrain":
            raise ConfigError(
                "questions are for a fine-tuned model; this one has only "
                "been pretrained, and was never asked one"
            )
        for option, given in (
            ("every_record (--all)", every_record or None),
            ("seq_len", seq_len),
        ):
            if given is not None:
                raise ConfigError(
                    f"{option} is for files; the microworld is endless, and "
                    "its stories are short and are measured whole"
                )
    if isinstance(run, Run):
        model, tokenizer = run.model, run.tokenizer
    else:
        model, tokenizer = load_model(run, device)
    if spec.language is not None:
        found = _evaluate_world(
            model, tokenizer, spec, seed or 0,
            skill=metadata.get("stage") in ("lora", "merged"),
            documents=documents or DOCUMENTS, samples=samples or SAMPLES,
            questions=0 if metadata.get("stage") == "pretrain"
            else questions or QUESTIONS,
        )  # fmt: skip
        return {"data": spec.names(), "part": "held-out", **found}
    most = documents or (DOCUMENTS if part == "held-out" else None)
    limit = _row_length(model, metadata, seq_len)
    measure = _evaluate_talks if kind == "conversations" else _evaluate_texts
    found = measure(
        model, tokenizer, records[:most], limit, questions or QUESTIONS
    )
    found |= {"data": spec.names(), "part": part, "seq_len": limit}
    if (bad := left_out(records.source)) and bad.count:
        found["bad_records"] = bad.describe()
    return found


def describe(found: Mapping[str, Any]) -> str:
    """Describe in a sentence what `evaluate` has measured.

    Parameters
    ----------
    found : mapping
        What `evaluate` returned.
    """
    names = " ".join(found["data"])
    part = "records"
    if found["part"] == "held-out":
        part = "held-out records"
    text = f"measured on {found['records']} {part} of {names}"
    if found["part"] == "held-out" and "seq_len" in found:
        text += f", of which training keeps one in {HELD_OUT_EVERY}"
    text += f": {found['tokens']} tokens"
    if found.get("skipped"):
        text += f"; {found['skipped']} were too long and are not counted"
    if found.get("bad_records"):
        text += f"\n{found['bad_records']}"
    return text


def _what_to_measure(
    path: Path, metadata: Mapping[str, Any], data: Data | None
) -> DataSpec:
    if data is not None:
        return parse_data(data)
    if not metadata.get("data"):
        raise DataError(
            f"{path}: the training data of this model is not known, so name "
            "the data to measure on: --data with files, or --data microworld"
        )
    try:
        return parse_data(metadata["data"])
    except DataError as error:
        raise DataError(
            f"{error} (that is what {path} was trained on; name other data "
            "with --data)"
        ) from None


def _choose(
    spec: DataSpec, metadata: Mapping[str, Any], every_record: bool
) -> tuple[_Lazily, str, str]:
    """Choose the records to measure; return their kind and part, too."""
    skip = spec.on_bad_record == "skip"
    kinds = {record_kind(one.path, skip=skip) for one in spec_files(spec)}
    if isinstance(spec.memory, list):
        kinds = {_kind(record) for record in spec.memory}
        # Of two kinds, the records that hold no conversation are bad.
        kinds = {"conversations"} if skip and len(kinds) > 1 else kinds
    elif spec.memory is not None:
        kinds = {_kind(spec.memory.records([0])[0])}
    if len(kinds) > 1:
        raise DataError(
            f"{spec}: some records are documents and others conversations; "
            "measure them one after the other"
        )
    kind = kinds.pop()
    found = open_records(spec, kind)
    part = "all"
    if found.size is None:
        raise DataError(
            f"{spec}: is endless, so not all of it can be measured; pass a "
            "list of some of its records"
        )
    if not every_record and _trained_on(spec, metadata):
        part, found = "held-out", Slice(found, held_out=True)
    return _Lazily(found), kind, part


def _kind(record: Any) -> str:
    """The kind of a record in memory."""
    if isinstance(record, Mapping):
        talk = {"conversations", "messages"} & record.keys()
        return "conversations" if talk else "text"
    return "text" if isinstance(record, str) else "conversations"


class _Lazily(Sequence[Any]):
    """The records of a finite source, read on access."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return self.source.size or 0

    def __getitem__(self, place: Any) -> Any:
        places = range(len(self))[place]
        if isinstance(places, int):
            return self.source.records([places])[0]
        return self.source.records(places)


def _trained_on(spec: DataSpec, metadata: Mapping[str, Any]) -> bool:
    """Whether a run was trained on these files.

    Raises
    ------
    DataError
        If it was trained on only some of them, or on other files as well.
        The held-out records depend on the whole list of files, so they are
        not known in that case.
    """
    if spec.memory is not None:
        # Records in memory are named by a digest: either equal or not.
        return spec.names() in training_data(metadata)
    asked = [path.resolve() for path in spec.paths]
    overlap = None
    for names in training_data(metadata):
        told = [Path(split_name(name)[0]) for name in names]
        same = [
            any(_same_file(one, path) for path in asked) for one in told
        ]
        if len(told) == len(asked) and all(
            _same_file(a, b) for a, b in zip(told, asked, strict=True)
        ):
            return True
        if any(same):
            overlap = overlap or names
    if overlap:
        raise DataError(
            f"{spec}: this model was trained on {' '.join(map(str, overlap))}"
            " together, and which records it held out can only be told for "
            "these; name exactly them, or measure all records with --all"
        )
    return False


def _same_file(told: Path, path: Path) -> bool:
    if told.resolve() == path:
        return True
    # A relative path refers to the folder in which training started, which is
    # no longer known, and a file may have been moved since. If in doubt,
    # assume the same file, because measuring on training data gives a loss
    # that is too low.
    certain = told.is_absolute() and told.exists()
    return not certain and told.name == path.name


def _row_length(
    model: nn.Module, metadata: Mapping[str, Any], seq_len: int | None
) -> int:
    positions = position_limit(model)
    if seq_len is not None:
        if seq_len > positions:
            raise ConfigError(
                f"seq_len {seq_len} is longer than the model's {positions} "
                "positions"
            )
        return seq_len
    train = metadata.get("train") or {}
    return min(int(train.get("seq_len") or LONGEST), positions)


def _evaluate_world(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    spec: DataSpec,
    seed: int,
    *,
    skill: bool,
    documents: int,
    samples: int,
    questions: int,
) -> dict[str, Any]:
    source: Any = open_source(spec, "text", seed=seed, held_out=True)
    chosen = _first(source, documents)
    loss = document_loss(model, tokenizer, source.records(chosen))
    texts = sample_texts(
        model, tokenizer, samples, seed=seed,
        max_new_tokens=position_limit(model),
    )  # fmt: skip
    found: dict[str, Any] = {
        **loss.to_dict(),
        "loss_over_floor": loss.nats / source.floor(chosen),
        "valid_fraction": source.valid_fraction(texts),
    }
    if questions:
        asked: Any = open_source(spec, "conversations", seed=seed)
        talks = asked.questions(questions, skill=skill)
        found["exact_match"] = exact_match(model, tokenizer, talks)
    return found


def _evaluate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    seq_len: int,
    questions: int,
) -> dict[str, Any]:
    return document_loss(
        model, tokenizer, texts, seq_len=seq_len
    ).to_dict()


def _evaluate_talks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    talks: Sequence[Messages],
    seq_len: int,
    questions: int,
) -> dict[str, Any]:
    loss = conversation_loss(model, tokenizer, talks, seq_len=seq_len)
    if not loss.records:
        raise DataError(
            f"none of {len(talks)} conversations has an answer that ends "
            f"within {seq_len} tokens; raise --seq-len"
        )
    last = [t for t in talks if t[-1]["role"] == "assistant"][:questions]
    answers = answer_prompts(model, tokenizer, [t[:-1] for t in last])
    known = [t[-1]["content"] for t in last]
    right = [a == b for a, b in zip(answers, known, strict=True)]
    return {
        **loss.to_dict(),
        "skipped": len(talks) - loss.records,
        "questions": len(right),
        "exact_match": {"all": sum(right) / max(len(right), 1)},
    }

