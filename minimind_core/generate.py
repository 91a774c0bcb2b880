"""From the distribution over the next token to text.

    from minimind_core.generate import generate_tokens, stream_tokens
    ids = generate_tokens(model, prompt_ids, max_new_tokens=50)
    for token in stream_tokens(model, prompt_ids, max_new_tokens=50):
        ...

Each new token is drawn from the model's distribution after it was shaped by
temperature and cut by top-k, top-p or min-p. Keys and values of earlier
tokens are kept in a cache, so that a token costs one forward pass of one
position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minimind_core.errors import ConfigError
from minimind_core.model import KVCache, MiniMind

# Which tokens end a row: the model's own, these, or none.
StopTokens = int | Sequence[int] | None | Literal["model"]


def stop_tokens(
    model: nn.Module, eos_token_id: StopTokens = "model"
) -> list[int]:
    """The ids that end a row, as a list.

    Parameters
    ----------
    model : nn.Module
    eos_token_id : int, sequence of int, None or "model"
        ``"model"`` asks the model's own config.

    Returns
    -------
    list of int
        Empty if nothing ends a row.
    """
    if eos_token_id == "model":
        config: Any = model.config
        eos_token_id = getattr(config, "eos_token_id", None)
    if eos_token_id is None:
        return []
    if isinstance(eos_token_id, int):
        return [eos_token_id]
    assert not isinstance(eos_token_id, str)
    return list(eos_token_id)


def _padding(model: nn.Module, pad_token_id: int | None) -> int:
    """The id that fills a row: the one asked for, or the model's own."""
    if pad_token_id is not None:
        return pad_token_id
    config: Any = model.config
    found = getattr(config, "pad_token_id", None)
    return found if found is not None else (*stop_tokens(model), 0)[0]


def position_limit(model: nn.Module) -> int:
    """The longest sequence a model takes, in tokens."""
    limit = model.config.max_position_embeddings  # type: ignore[union-attr]
    assert isinstance(limit, int)
    return limit


def next_token_probs(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Shape and cut the distribution over the next token.

    Parameters
    ----------
    logits : Tensor, shape (batch, vocab)
    temperature : float
        Divides the logits: below 1 sharper, above 1 flatter; 0 leaves only
        the most likely token.
    top_k : int
        Keep the so many most likely tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of tokens whose probability reaches this
        (Holtzman et al., arXiv:1904.09751); 1 keeps all.
    min_p : float
        Keep tokens at least this share as likely as the most likely one
        (Nguyen et al., arXiv:2407.01082); 0 keeps all.

    Returns
    -------
    Tensor of float32, shape (batch, vocab)
        Probabilities that sum to 1. The cuts apply one after the other, in
        the order above, each to what the last one left.

    Raises
    ------
    ConfigError
        For a value out of its range.
    """
    _check(temperature, top_k, top_p, min_p)
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        # Ties with the k-th must not let more than k through.
        kept = logits.topk(top_k, dim=-1).indices
        cut = torch.full_like(logits, -torch.inf)
        logits = cut.scatter(-1, kept, logits.gather(-1, kept))
    if top_p < 1:
        probs, order = logits.softmax(-1).sort(dim=-1, descending=True)
        before = probs.cumsum(-1) - probs
        # The most likely token stays even if it alone exceeds top_p.
        gone = (before >= top_p).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(gone, -torch.inf)
    if min_p > 0:
        probs = logits.softmax(-1)
        limit = min_p * probs.max(-1, keepdim=True).values
        logits = logits.masked_fill(probs < limit, -torch.inf)
    return logits.softmax(-1)


def _check(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    for name, holds, value in (
        ("temperature must be >= 0", temperature >= 0, temperature),
        ("top_k must be >= 0", top_k >= 0, top_k),
        ("top_p must be in (0, 1]", 0 < top_p <= 1, top_p),
        ("min_p must be in [0, 1)", 0 <= min_p < 1, min_p),
    ):
        if not holds:
            raise ConfigError(f"{name}, not {value}")


def penalise_repetition(
    logits: Tensor, seen: Tensor, penalty: float
) -> Tensor:
    """Make tokens that are already there less likely.

    Positive logits are divided by the penalty, negative ones multiplied
    (Keskar et al., arXiv:1909.05858), as in transformers.

    Parameters
    ----------
    logits : Tensor, shape (batch, vocab)
    seen : Tensor of int64, shape (batch, time)
    penalty : float
        1 changes nothing.
    """
    if penalty == 1:
        return logits
    if penalty <= 0:
        raise ConfigError(f"repetition_penalty must be > 0, not {penalty}")
    found = logits.gather(-1, seen)
    found = torch.where(found > 0, found / penalty, found * penalty)
    return logits.scatter(-1, seen, found)


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    eos_token_id: StopTokens = "model",
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue a batch of prompts.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or a Hugging Face or peft model, whose own
        ``generate`` is used.
    input_ids : Tensor of int64, shape (batch, time)
        Prompts of different lengths are padded on the left.
    max_new_tokens : int
    temperature, top_k, top_p, min_p
        See `next_token_probs`.
    repetition_penalty : float
        See `penalise_repetition`.
    eos_token_id : int, sequence of int, None or "model"
        The token or tokens that end a row. By default, those of the model's
        config; None never stops early.
    pad_token_id : int, optional
        Fills a row behind its end; the model's own by default.
    attention_mask : Tensor, shape (batch, time), optional
        0 on padding.
    generator : torch.Generator, optional
        Of the model's device; makes the draw repeatable.
    use_cache : bool
        Without, every step computes all positions anew: the same tokens,
        slower.

    Returns
    -------
    Tensor of int64, shape (batch, time + new)
        As long as the longest row needed.

    Raises
    ------
    ConfigError
        If a setting is out of range, or the result would be longer than the
        model's ``max_position_embeddings``.
    """
    _check(temperature, top_k, top_p, min_p)
    stops = stop_tokens(model, eos_token_id)
    padding = _padding(model, pad_token_id)
    if not isinstance(model, MiniMind):
        return _hugging_face(
            model, input_ids, attention_mask, max_new_tokens, temperature,
            top_k, top_p, min_p, repetition_penalty, stops, padding,
            generator,
        )  # fmt: skip
    length = input_ids.size(1) + max_new_tokens
    if length > model.config.max_position_embeddings:
        raise ConfigError(
            f"{input_ids.size(1)} tokens and {max_new_tokens} new ones are "
            f"more than the {model.config.max_position_embeddings} positions "
            "of this model"
        )
    batch = input_ids.size(0)
    device = input_ids.device
    weight = model.model.embed_tokens.weight
    cache = None
    if use_cache:
        cache = KVCache(model.config, batch, length, device, weight.dtype)
    ids, mask = input_ids, attention_mask
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    ends = torch.tensor(stops, dtype=ids.dtype, device=device)
    for _ in range(max_new_tokens):
        new = ids if cache is None else ids[:, cache.length :]
        logits = model(new, attention_mask=mask, cache=cache).logits[:, -1]
        logits = penalise_repetition(logits, ids, repetition_penalty)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            probs = next_token_probs(
                logits, temperature=temperature, top_k=top_k, top_p=top_p,
                min_p=min_p,
            )  # fmt: skip
            token = torch.multinomial(probs, 1, generator=generator)[:, 0]
        token = token.masked_fill(done, padding)
        ids = torch.cat((ids, token[:, None]), 1)
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(batch, 1)), 1)
        if stops:
            done = done | torch.isin(token, ends)
            if bool(done.all()):
                break
    return ids


def _hugging_face(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stops: list[int],
    padding: int,
    generator: torch.Generator | None,
) -> Tensor:
    settings: dict[str, object] = {"do_sample": temperature > 0}
    if temperature > 0:
        settings |= {
            "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "min_p": min_p or None,
        }  # fmt: skip
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    with torch.random.fork_rng(enabled=generator is not None):
        if generator is not None:
            # It draws from the global generator: set by ours, then put back.
            torch.manual_seed(_draw_seed(generator))
        found = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            eos_token_id=stops or None,
            pad_token_id=padding,
            **settings,
        )
    assert isinstance(found, Tensor)
    return found


def _draw_seed(generator: torch.Generator) -> int:
    return int(
        torch.randint(
            2**31, (), generator=generator, device=generator.device
        )
    )


@torch.no_grad()
def stream_tokens(
    model: MiniMind,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    eos_token_id: StopTokens = "model",
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue one prompt, token by token as they are drawn.

    Parameters
    ----------
    model : MiniMind
    input_ids : Tensor of int64, shape (1, time)
    max_new_tokens : int
        Fewer if the model's positions run out.
    temperature, top_k, top_p, min_p, repetition_penalty, eos_token_id,
    generator
        As in `generate_tokens`.

    Yields
    ------
    int
        The end token is not among them.
    """
    _check(temperature, top_k, top_p, min_p)
    room = model.config.max_position_embeddings - input_ids.size(1)
    length = input_ids.size(1) + min(max_new_tokens, room)
    weight = model.model.embed_tokens.weight
    cache = KVCache(
        model.config, 1, length, input_ids.device, weight.dtype
    )
    stops = stop_tokens(model, eos_token_id)
    ids = input_ids
    while ids.size(1) < length:
        logits = model(ids[:, cache.length :], cache=cache).logits[:, -1]
        logits = penalise_repetition(logits, ids, repetition_penalty)
        probs = next_token_probs(
            logits, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p,
        )  # fmt: skip
        token = torch.multinomial(probs, 1, generator=generator)
        if token.item() in stops:
            return
        yield int(token.item())
        ids = torch.cat((ids, token), 1)


def pad_left(
    rows: list[list[int]], pad_token_id: int, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch, ending together.

    Returns
    -------
    input_ids, attention_mask : Tensor of int64, shape (batch, time)
    """
    time = max(map(len, rows))
    ids = [[pad_token_id] * (time - len(row)) + row for row in rows]
    mask = [[0] * (time - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids).to(device), torch.tensor(mask).to(device)
