"""The transformer, written out: MiniMind-3's shape, which is Qwen3's.

    from minimind_core.config import get_preset
    from minimind_core.model import MiniMind
    model = MiniMind(get_preset("tiny").model)
    logits = model(input_ids).logits            # (batch, time, vocab)

Attributes carry the names of `transformers.Qwen3ForCausalLM`, so the two
state dicts have the same keys and a file of one loads into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimind_core.attention import (
    Mask,
    attend,
    attention_weights,
    build_mask,
)
from minimind_core.config import ModelConfig

IGNORE_INDEX = -100
"""The label of a position that is not supervised."""


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale each channel.

    The mean is taken in float32, whatever the input's type: the square of
    a float16 above 255 would overflow. Zhang & Sennrich, arXiv:1910.07467.

    Parameters
    ----------
    size : int
        Channels, the last dimension of the input.
    eps : float
        Added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`; the type is kept."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, (x.size(-1),), weight, self.eps)


class RotaryEmbedding(nn.Module):
    """Rotate pairs of channels by an angle that grows with the position.

    The dot product of a rotated query and a rotated key then depends only
    on the distance between them (Su et al., arXiv:2104.09864). Channel i is
    paired with channel i + head_dim / 2, as in Qwen3 and Llama.

    Parameters
    ----------
    head_dim : int
        Width of one head.
    theta : float
        Pair ``i`` turns by ``theta ** (-2 i / head_dim)`` radians a
        position.

    Attributes
    ----------
    inv_freq : Tensor of float32, shape (head_dim / 2,)
        These angles. They stay in float32 when the model is cast: rounded
        to bfloat16 they would be off by 0.2 radians at position 500.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self.register_buffer("inv_freq", self._angles(), persistent=False)

    def _angles(self) -> Tensor:
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        return 1.0 / self.theta ** (steps / self.head_dim)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> Self:
        """Follow `Module.to` to another device, but not to another type.

        All of `to`, `half` and `to_empty` go through this method.
        """
        super()._apply(fn, recurse)
        self.inv_freq = self._angles().to(self.inv_freq.device)
        return self

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the cosine and the signed sine for each position.

        Parameters
        ----------
        position_ids : Tensor of int64, shape (batch or 1, time)

        Returns
        -------
        cos, sin : Tensor, shape (batch or 1, 1, time, head_dim)
            In float32 even under autocast, because half precision cannot
            tell positions beyond 256 (bfloat16) or 2048 (float16) apart.
            The first half of ``sin`` is negated, as `rotate` expects.
        """
        angles = position_ids[..., None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        cos = torch.cat((cos, cos), dim=-1)[:, None]
        return cos, torch.cat((-sin, sin), dim=-1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys, shape (batch, heads, time, head_dim).

    ``roll`` swaps the two halves of the channels, so that each meets its
    partner: a pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    rolled = torch.roll(x, x.size(-1) // 2, -1)
    return x * cos.to(x.dtype) + rolled * sin.to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, in preallocated memory.

    Parameters
    ----------
    config : ModelConfig
    batch_size : int
    max_length : int
        Tokens it can hold.
    device, dtype
        Of the stored keys and values.

    Attributes
    ----------
    length : int
        Tokens held.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            2,
            batch_size,
            config.num_key_value_heads,
            max_length,
            config.head_width,
        )
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def max_length(self) -> int:
        """Tokens it can hold."""
        return self.store.size(4)

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return self.store.numel() * self.store.element_size()

    def update(
        self, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values, and return all of them.

        Parameters
        ----------
        layer : int
        k, v : Tensor, shape (batch, kv_heads, time, head_dim)

        Returns
        -------
        k, v : Tensor, shape (batch, kv_heads, length + time, head_dim)
            `length` itself grows once per forward pass, in `Decoder`.

        Raises
        ------
        ValueError
            If the cache is full.
        """
        end = self.length + k.size(2)
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens, {end} needed"
            )
        self.store[layer, 0, :, :, self.length : end] = k
        self.store[layer, 1, :, :, self.length : end] = v
        keys, values = self.store[layer, :, :, :, :end]
        return keys.to(k.dtype), values.to(v.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys.

    Several query heads share one head of keys and values (Ainslie et al.,
    arXiv:2305.13245); RMSNorm on each head's query and key keeps their dot
    products in range (Qwen3, arXiv:2505.09388).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_width
        q_width = config.num_attention_heads * head
        kv_width = config.num_key_value_heads * head
        self.layer = layer
        self.head_dim = head
        self.q_proj = nn.Linear(width, q_width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, width, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Mix information between positions.

        Parameters
        ----------
        x : Tensor, shape (batch, time, hidden)
        rope : cosine and sine from `RotaryEmbedding`
        mask : see `attend`
        cache : KVCache, optional
        maps : list, optional
            Receives the attention weights (batch, heads, time, past + time),
            which is slow and meant for inspection.

        Returns
        -------
        Tensor, shape (batch, time, hidden)
        """
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        if maps is not None:
            maps.append(attention_weights(q, k, mask))
        out = attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class SwiGLU(nn.Module):
    """The feed-forward layer, in which one projection gates another.

    ``down(silu(gate(x)) * up(x))``; Shazeer, arXiv:2002.05202.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_width
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, hidden) to the same shape, token by token."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Apply the layer; parameters as in `Attention.forward`.

        `x` is the residual stream.

        The additions are not in place, so that the stream stays in float32
        under autocast and a hook sees what attention alone has written.
        """
        normed = self.input_layernorm(x)
        x = x + self.self_attn(normed, rope, mask, cache, maps)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and final norm: the model without its head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size
        )
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(
            config.head_width, config.rope_theta
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Map token ids (batch, time) to hidden states (batch, time, hidden).

        The other parameters are those of `MiniMind.forward`.
        """
        past = cache.length if cache is not None else 0
        time = input_ids.size(1)
        if position_ids is None:
            position_ids = _positions(attention_mask, past, input_ids)
        x = self.embed_tokens(input_ids)
        rope = self.rotary_emb(position_ids)
        mask = build_mask(
            x,
            self.rotary_emb.head_dim,
            past=past,
            attention_mask=attention_mask,
            document_ids=document_ids,
            table=maps is not None,
        )
        for block in self.layers:
            x = block(x, rope, mask, cache, maps)
        if cache is not None:
            cache.length += time
        return self.norm(x)


def _positions(
    attention_mask: Tensor | None, past: int, input_ids: Tensor
) -> Tensor:
    """Number the new tokens; padding does not count."""
    end = past + input_ids.size(1)
    if attention_mask is None:
        return torch.arange(past, end, device=input_ids.device)[None]
    counted = attention_mask.long().cumsum(-1) - 1
    return counted.clamp(min=0)[:, past:end]


class CausalLMOutput(NamedTuple):
    """The output of a model: `loss` with labels, `logits` without."""

    loss: Tensor | None
    logits: Tensor | None


def head_loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy of the positions that have a target.

    Parameters
    ----------
    head : nn.Module
        Maps hidden states to logits.
    hidden : Tensor, shape (positions, hidden)
    targets : Tensor of int64, shape (positions,)
        `IGNORE_INDEX` at positions that are not supervised.

    Returns
    -------
    Tensor of float32, shape ()
        In nats.
    """
    return F.cross_entropy(
        head(hidden).float(),
        targets,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )


class MiniMind(nn.Module):
    """A causal language model.

    It has the call signature of `transformers.Qwen3ForCausalLM`, so that the
    trainer accepts either of them, and peft models as well.

    Parameters
    ----------
    config : ModelConfig
        The weights are initialised from torch's global generator.

    Attributes
    ----------
    loss_chunk : int or None
        Compute the loss over this many positions at a time, so that the
        logits of a large batch never exist all at once. None takes all
        positions together. See `acceleration.accelerate`.
    """

    loss_chunk: int | None = None
    head_loss = staticmethod(head_loss)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(
            config.hidden_size, config.vocab_size, bias=False
        )
        self.reset_parameters()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def reset_parameters(self) -> None:
        """Initialise all weights again.

        They are normal with a standard deviation of ``initializer_range``.
        For projections that write to the residual stream it is divided by
        ``sqrt(2 * layers)``, so that the stream's variance does not grow
        with depth (GPT-2's rule).
        """
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(
                    module.weight, std=residual_std if ends else std
                )
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        maps: list[Tensor] | None = None,
    ) -> CausalLMOutput:
        """Predict the next token at each position.

        Parameters
        ----------
        input_ids : Tensor of int64, shape (batch, time)
        labels : Tensor of int64, shape (batch, time), optional
            Usually `input_ids`, with `IGNORE_INDEX` at positions that are
            not supervised. They are shifted here: position t is trained on
            ``labels[:, t + 1]``.
        attention_mask : Tensor, shape (batch, past + time), optional
            0 for padding on the left, 1 for tokens. Padding on the right
            needs no mask, because no earlier token can see it.
        position_ids : Tensor of int64, shape (batch, time), optional
        document_ids : Tensor of int64, shape (batch, time), optional
            Which document of a packed row each token belongs to; tokens see
            only their own document. See also `build_mask`.
        cache : KVCache, optional
            The tokens before; the new ones are added to it.
        num_items_in_batch : int or Tensor, optional
            Divisor of the summed loss; by default the number of supervised
            positions in this batch. With gradient accumulation, pass their
            number in all micro-batches: the sum of the losses is then the
            mean over all tokens.
        maps : list, optional
            Receives each layer's attention weights, for inspection.

        Returns
        -------
        CausalLMOutput
            With labels the loss (float32, nats per token) and no logits,
            which are not computed at every position then.
        """
        hidden = self.model(
            input_ids, attention_mask, position_ids, document_ids, cache, maps
        )
        if labels is None:
            return CausalLMOutput(None, self.lm_head(hidden))
        # On a CPU it pays to compute logits at supervised positions only. On
        # a GPU, finding them would wait for all work in flight.
        select = hidden.device.type == "cpu"
        summed, count = self._summed_loss(hidden, labels, select)
        if num_items_in_batch is None:
            num_items_in_batch = count
        return CausalLMOutput(summed / num_items_in_batch, None)

    def _summed_loss(
        self, hidden: Tensor, labels: Tensor, select: bool
    ) -> tuple[Tensor, Tensor | int]:
        """Cross-entropy of the supervised positions, and their number."""
        hidden = hidden[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten()
        supervised = targets != IGNORE_INDEX
        if select:
            kept = supervised.nonzero().squeeze(1)
            hidden, targets = hidden[kept], targets[kept]
            count: Tensor | int = max(kept.numel(), 1)
        else:
            count = supervised.sum().clamp(min=1)
        size = self.loss_chunk
        if size is None or size >= len(targets):
            return self.head_loss(self.lm_head, hidden, targets), count
        # The logits of a chunk are dropped and, in the backward pass,
        # computed again. Computing their gradient right here would save
        # that, but the gradient scaler of float16 has not multiplied the
        # loss yet, so small gradients would be lost.
        parts = [
            checkpoint(
                self.head_loss, self.lm_head, *chunk, use_reentrant=False
            )
            for chunk in zip(
                hidden.split(size), targets.split(size), strict=True
            )
        ]
        return torch.stack(parts).sum(), count

    @torch.no_grad()
    def resize_token_embeddings(self, vocab_size: int) -> None:
        """Change the number of rows of the embedding and the head.

        Named after the method of transformers. New rows start as the mean
        of the old ones, so that a new token is as likely as an average one.

        Parameters
        ----------
        vocab_size : int
            For example ``len(tokenizer)`` after `add_tokens`. Rows beyond
            it are dropped.
        """
        config = self.config.replace(vocab_size=vocab_size)
        embedding = self.model.embed_tokens
        modules: list[nn.Embedding | nn.Linear] = [embedding]
        if not config.tie_word_embeddings:
            modules.append(self.lm_head)
        for module in modules:
            old = module.weight
            kept = old[:vocab_size]
            new = old.mean(0).expand(vocab_size - len(kept), -1)
            module.weight = nn.Parameter(
                torch.cat((kept, new)), requires_grad=old.requires_grad
            )
        if config.tie_word_embeddings:
            self.lm_head.weight = embedding.weight
        embedding.num_embeddings = self.lm_head.out_features = vocab_size
        self.config = config

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """Attention weights of every layer and head.

        Parameters
        ----------
        input_ids : Tensor of int64, shape (batch, time)

        Returns
        -------
        Tensor, shape (layers, batch, heads, time, time)
            Row t holds the weight of each earlier token at position t.
        """
        maps: list[Tensor] = []
        self(input_ids, maps=maps)
        return torch.stack(maps)
