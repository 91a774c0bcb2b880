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
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_core.config import ModelConfig

IGNORE_INDEX = -100
"""The label of a position that takes no part in the loss."""


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
    """Turn each pair of channels by an angle that grows with position.

    The dot product of a turned query and a turned key depends on the
    distance between them only. Su et al., arXiv:2104.09864. Pairs are
    (i, i + head_dim / 2), as in Qwen3 and Llama's Hugging Face form.

    Parameters
    ----------
    head_dim : int
        Width of one head.
    theta : float
        Pair ``i`` turns by ``theta ** (-2 i / head_dim)`` a position.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32)
        inv_freq = 1.0 / theta ** (steps / head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine for each position.

        Parameters
        ----------
        position_ids : Tensor of int64, shape (batch or 1, time)

        Returns
        -------
        cos, sin : Tensor, shape (batch or 1, 1, time, head_dim)
            In float32 even under autocast: in half precision positions
            beyond 256 (bfloat16) or 2048 (float16) would run together. The
            first half of ``sin`` is negated, so that turning needs only a
            roll.
        """
        angles = position_ids[..., None].float() * self.inv_freq.float()
        cos, sin = angles.cos(), angles.sin()
        cos = torch.cat((cos, cos), dim=-1)[:, None]
        return cos, torch.cat((-sin, sin), dim=-1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotation to queries or keys (batch, heads, time, head_dim).

    ``roll`` by half the width puts channel i + d/2 at place i and back, so
    each pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    rolled = torch.roll(x, x.size(-1) // 2, -1)
    return x * cos.to(x.dtype) + rolled * sin.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention through PyTorch's fused kernels.

    Parameters
    ----------
    q : Tensor, shape (batch, heads, time, head_dim)
    k, v : Tensor, shape (batch, kv_heads, past + time, head_dim)
    mask : Tensor of bool, broadcastable to (batch, heads, time, past + time)
        True where a query may look; None means causal.

    Returns
    -------
    Tensor, shape (batch, heads, time, head_dim)
    """
    attention = partial(
        F.scaled_dot_product_attention,
        attn_mask=mask,
        is_causal=mask is None and q.size(2) > 1,
        enable_gqa=q.size(1) != k.size(1),
    )
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The bfloat16 backward of this kernel is slow on CPUs: attention
        # alone in float32 makes the whole step about 1.4 times faster.
        with torch.autocast("cpu", enabled=False):
            out = attention(q.float(), k.float(), v.float())
        return out.to(q.dtype)
    return attention(q, k, v)


class KVCache:
    """Keys and values of the tokens seen so far, in memory laid out ahead.

    Parameters
    ----------
    config : ModelConfig
    batch_size : int
    max_length : int
        Tokens it can hold.
    device, dtype
        Where and as what they are kept.

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
        """Append the newest keys and values of a layer, return all of them.

        Parameters
        ----------
        layer : int
        k, v : Tensor, shape (batch, kv_heads, time, head_dim)

        Returns
        -------
        k, v : Tensor, shape (batch, kv_heads, length + time, head_dim)
            `length` itself grows once a forward pass, in `MiniMind`.
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
        mask: Tensor | None = None,
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
            The attention weights (batch, heads, time, past + time) are
            appended to it: slow, for looking only.

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
            maps.append(_attention_weights(q, k, mask))
        out = attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """What `attend` computes inside: softmax of the scaled dot products."""
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    scores = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.size(-1))
    if mask is None:
        past = k.size(2) - q.size(2)
        mask = torch.ones_like(scores, dtype=torch.bool).tril(past)
    return scores.masked_fill(~mask, -math.inf).softmax(-1)


class SwiGLU(nn.Module):
    """The feed-forward part: one half gates the other.

    ``down(silu(gate(x)) * up(x))``; Shazeer, arXiv:2002.05202.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_width
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, hidden) to the same shape, each token alone."""
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
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Attention.forward`; `x` is the residual stream.

        The additions are not in place: under autocast the stream stays in
        float32 that way, and a hook sees what attention alone has written.
        """
        normed = self.input_layernorm(x)
        x = x + self.self_attn(normed, rope, mask, cache, maps)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and final norm: all but the output head."""

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
        position_ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Token ids (batch, time) to hidden states (batch, time, hidden)."""
        x = self.embed_tokens(input_ids)
        rope = self.rotary_emb(position_ids)
        for block in self.layers:
            x = block(x, rope, mask, cache, maps)
        return self.norm(x)


class CausalLMOutput(NamedTuple):
    """What a model returns: `loss` with labels, `logits` without."""

    loss: Tensor | None
    logits: Tensor | None


class MiniMind(nn.Module):
    """A causal language model.

    Called as `transformers.Qwen3ForCausalLM` is, so that the trainer takes
    either, and a peft model as well.

    Parameters
    ----------
    config : ModelConfig
        Its weights are drawn at once from torch's global generator.
    """

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
        """Draw all weights anew.

        Normal with ``initializer_range``; projections that write to the
        residual stream are divided by ``sqrt(2 * layers)``, so that its
        variance does not grow with depth (GPT-2's rule).
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
        attention_mask: Tensor | None = None,
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
            Usually `input_ids`, with `IGNORE_INDEX` where there is nothing
            to learn. They are shifted here: position t is trained on
            ``labels[:, t + 1]``.
        attention_mask : Tensor, shape (batch, past + time), optional
            0 for padding on the left, 1 for tokens. Padding on the right
            needs none: nothing before it can see it.
        position_ids : Tensor of int64, shape (batch, time), optional
        document_ids : Tensor of int64, shape (batch, time), optional
            Which document of a packed row a token belongs to; tokens see
            their own document only.
        cache : KVCache, optional
            What came before; the new tokens are added to it.
        num_items_in_batch : int or Tensor, optional
            What the summed loss is divided by; the number of labels that
            count if not given. With accumulation it is the number in the
            whole batch, which makes the loss a mean over tokens.
        maps : list, optional
            Filled with each layer's attention weights; for looking only.

        Returns
        -------
        CausalLMOutput
            With labels the loss (float32, nats per token) and no logits:
            they are computed only where there is something to learn.
        """
        past = cache.length if cache is not None else 0
        time = input_ids.size(1)
        if position_ids is None:
            position_ids = _positions(attention_mask, past, time, input_ids)
        mask = _mask(attention_mask, document_ids, past, time, input_ids)
        hidden = self.model(input_ids, position_ids, mask, cache, maps)
        if cache is not None:
            cache.length += time
        if labels is None:
            return CausalLMOutput(None, self.lm_head(hidden))
        targets = labels[:, 1:].flatten()
        kept = (targets != IGNORE_INDEX).nonzero().squeeze(1)
        logits = self.lm_head(hidden[:, :-1].flatten(0, 1)[kept])
        summed = F.cross_entropy(
            logits.float(), targets[kept], reduction="sum"
        )
        if num_items_in_batch is None:
            num_items_in_batch = max(kept.numel(), 1)
        return CausalLMOutput(summed / num_items_in_batch, None)

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """Attention weights of every layer and head.

        Parameters
        ----------
        input_ids : Tensor of int64, shape (batch, time)

        Returns
        -------
        Tensor, shape (layers, batch, heads, time, time)
            Row t says how much each earlier token counts at position t.
        """
        maps: list[Tensor] = []
        self(input_ids, maps=maps)
        return torch.stack(maps)


def _positions(
    attention_mask: Tensor | None, past: int, time: int, like: Tensor
) -> Tensor:
    """Positions count tokens, not padding."""
    if attention_mask is None:
        return torch.arange(past, past + time, device=like.device)[None]
    counted = attention_mask.long().cumsum(-1) - 1
    return counted.clamp(min=0)[:, past : past + time]


def _mask(
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    past: int,
    time: int,
    like: Tensor,
) -> Tensor | None:
    """Who may look at whom, as booleans; None where plain causal will do.

    Booleans, because a large negative number added to the scores is not
    safe in float16 (-1e9 is -inf there). Each token may always look at
    itself, or a row of padding would be a softmax over nothing: NaN.
    """
    if attention_mask is None and document_ids is None:
        if past == 0 or time == 1:
            return None
    device = like.device
    rows = torch.arange(past, past + time, device=device)[:, None]
    columns = torch.arange(past + time, device=device)
    mask = (columns <= rows)[None, None]
    if document_ids is not None:
        if past:
            raise ValueError("document_ids and a cache exclude each other")
        mask = mask & (
            document_ids[:, None, :, None] == document_ids[:, None, None, :]
        )
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, :]
    return mask | (columns == rows)
