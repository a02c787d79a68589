"""The float reference: a Llama-architecture language model as plain torch modules.

The modules carry Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`), so a state
dictionary is a checkpoint and a hook finds a tensor under the name that the world uses for it.
Shapes in comments: B batch, T new tokens, S tokens seen so far (S = T without a cache), H heads,
G key/value heads, P head_dim.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systolith.errors import CheckpointError

ROPE_PAIRS = ("adjacent", "halves")
LONGEST = 1 << 20   # positions; more means a damaged configuration, and tables without end


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything about a Llama model that is not a weight.

    dim            width of the residual stream
    hidden_dim     width inside the feed-forward network
    n_layers       transformer blocks
    n_heads        query heads; dim is a multiple of it, and head_dim = dim / n_heads is even
    n_kv_heads     key and value heads; divides n_heads
    vocab_size     rows of the embedding
    max_seq_len    positions that the model was made for; at most 2**20; longer sequences
                   are refused
    norm_eps       added to the mean square in RMSNorm
    rope_base      base of the rotary frequencies
    rope_pairs     which two elements of a head rotate together: "adjacent" (0, 1) as in Meta's and
                   llama2.c's files, or "halves" (0, head_dim / 2) as in Hugging Face's
    tied_embedding the classifier is the embedding, and has no tensor of its own
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_pairs: str = "halves"
    tied_embedding: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size",
                     "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{name} must be a positive integer, not {value!r}")
        for name in ("norm_eps", "rope_base"):
            value = getattr(self, name)
            if (not isinstance(value, (int, float)) or isinstance(value, bool)
                    or not 0 < value < math.inf):
                raise CheckpointError(f"{name} must be a positive number, not {value!r}")
        if self.max_seq_len > LONGEST:
            raise CheckpointError(f"max_seq_len must be at most {LONGEST}, not {self.max_seq_len}")
        if not isinstance(self.tied_embedding, bool):
            raise CheckpointError(
                f"tied_embedding must be true or false, not {self.tied_embedding!r}")
        if self.rope_pairs not in ROPE_PAIRS:
            raise CheckpointError(
                f"rope_pairs must be one of {', '.join(ROPE_PAIRS)}, not {self.rope_pairs!r}")
        if self.dim % (2 * self.n_heads):
            raise CheckpointError(
                f"dim must be an even multiple of n_heads, not {self.dim} for {self.n_heads} heads")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"n_kv_heads must divide n_heads, not {self.n_kv_heads} for {self.n_heads} heads")

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Elements of one token's keys (or values), all heads together."""
        return self.n_kv_heads * self.head_dim


def rope_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [max_seq_len, head_dim / 2], computed in float64."""
    pair = torch.arange(config.head_dim // 2, dtype=torch.float64)
    frequency = config.rope_base ** (-2 * pair / config.head_dim)
    angle = torch.arange(config.max_seq_len, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: str) -> Tensor:
    """Rotates each pair of x[..., T, P] by the angle of its position; cos, sin [T, P / 2]."""
    if pairs == "adjacent":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class KVCache:
    """Keys and values of the tokens seen so far; one for each sequence being generated.

    `layers[i]` is (keys, values), each [B, G, S, P], or absent before the first forward.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Tokens held, S."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k and v [B, G, T, P] to a layer and returns all of its keys and values."""
        if layer in self.layers:
            k = torch.cat((self.layers[layer][0], k), dim=2)
            v = torch.cat((self.layers[layer][1], v), dim=2)
        self.layers[layer] = (k, v)
        return k, v


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · gain over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal attention with rotary positions; n_heads / n_kv_heads query heads share a key head."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.q_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        c = self.config
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, c.n_heads, c.head_dim).transpose(1, 2)     # [B, H, T, P]
        k = self.k_proj(x).view(b, t, c.n_kv_heads, c.head_dim).transpose(1, 2)  # [B, G, T, P]
        v = self.v_proj(x).view(b, t, c.n_kv_heads, c.head_dim).transpose(1, 2)  # [B, G, T, P]
        q = rotate(q, cos, sin, c.rope_pairs)
        k = rotate(k, cos, sin, c.rope_pairs)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                                # [B, G, S, P]
        s = k.shape[2]
        # Token i of the new ones sees the cache and the new ones up to itself.
        seen = None if t == s else torch.ones(t, s, dtype=torch.bool).tril(s - t)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None,
                                           enable_gqa=True)                      # [B, H, T, P]
        return self.o_proj(x.transpose(1, 2).reshape(b, t, c.dim))               # [B, T, dim]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each normed first and added back."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and final norm: tokens to the residual stream [B, T, dim]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        start = cache.length if cache is not None else 0
        stop = start + tokens.shape[1]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[start:stop], self.sin[start:stop], cache)
        return self.norm(x)


class Llama(nn.Module):
    """tokens int64 [B, T] to logits float32 [B, T, vocab_size].

    With a `KVCache`, `tokens` continue what the cache has seen, and their keys and values join it.
    A sequence longer than `config.max_seq_len` raises ValueError: its positions have no angles.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tied_embedding:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def classifier(self) -> Tensor:
        """The weight that turns the residual stream into logits, [vocab_size, dim]."""
        tied = self.config.tied_embedding
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        length = tokens.shape[1] + (cache.length if cache is not None else 0)
        if length > self.config.max_seq_len:
            raise ValueError(f"Sequence length must be at most {self.config.max_seq_len}, "
                             f"not {length}")
        return F.linear(self.model(tokens, cache), self.classifier())
