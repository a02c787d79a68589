"""A GPT-2 checkpoint as a float network: a language model, from tokens to their scores.

Tensors have the names of Hugging Face's GPT2LMHeadModel, and so have the operations, as if the
module had been captured. Its Conv1D layers hold [in, out] matrices, which are transposed here; the
one that makes queries, keys and values together becomes three.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from systolith.quant.description import Description
from systolith.quant.network import (
    POSITIONS,
    Add,
    Attention,
    Embed,
    Function,
    Linear,
    Network,
    Norm,
    Op,
    Output,
)
from systolith.quant.safetensors_file import SafetensorsFile

PREFIX = "transformer."
BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Masks that older checkpoints hold beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Gpt2Config:
    """Everything about a GPT-2 model that is not a weight.

    hidden      width of the residual stream; a multiple of ``heads``
    inner       width inside the feed-forward network
    layers      transformer blocks, each normed before its two parts
    heads       of the causal attention
    vocabulary  rows of the token embedding
    positions   rows of the position embedding: the longest sequence
    activation  of the feed-forward network, by its name in `network.FUNCTIONS`
    eps         added to the variance in LayerNorm
    scaled      scores are divided by the root of the head's width
    by_layer    scores of layer i are divided by i + 1
    tied        the classifier is the token embedding
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    activation: str = "gelu_tanh"
    eps: float = 1e-5
    scaled: bool = True
    by_layer: bool = False
    tied: bool = True


def gpt2_config(description: Description) -> Gpt2Config:
    """The configuration in a config.json; CheckpointError for whatever is not implemented here."""
    d = description
    d.refuse_quantized()
    if d.get("add_cross_attention"):
        raise d.error("a GPT-2 that reads an encoder (add_cross_attention) is not supported")
    hidden, heads = d.integer("n_embd"), d.integer("n_head")
    if hidden % heads:
        raise d.error(f"n_embd must be a multiple of n_head, not {hidden} for {heads} heads")
    return Gpt2Config(
        hidden=hidden, inner=d.integer("n_inner", 4 * hidden), layers=d.integer("n_layer"),
        heads=heads, vocabulary=d.integer("vocab_size"), positions=d.integer("n_positions"),
        activation=d.activation("activation_function", "gelu_new"),
        eps=d.number("layer_norm_epsilon", 1e-5), scaled=d.flag("scale_attn_weights", True),
        by_layer=d.flag("scale_attn_by_inverse_layer_idx", False),
        tied=d.flag("tie_word_embeddings", True))


def tensor_shapes(config: Gpt2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that `gpt2_network` needs."""
    c = config
    yield f"{PREFIX}wte.weight", (c.vocabulary, c.hidden)
    yield f"{PREFIX}wpe.weight", (c.positions, c.hidden)
    for i in range(c.layers):
        for name, shape in (
            ("ln_1", (c.hidden,)),
            ("attn.c_attn", (c.hidden, 3 * c.hidden)),
            ("attn.c_proj", (c.hidden, c.hidden)),
            ("ln_2", (c.hidden,)),
            ("mlp.c_fc", (c.hidden, c.inner)),
            ("mlp.c_proj", (c.inner, c.hidden)),
        ):
            yield f"{PREFIX}h.{i}.{name}.weight", shape
            yield f"{PREFIX}h.{i}.{name}.bias", shape[-1:]
    yield f"{PREFIX}ln_f.weight", (c.hidden,)
    yield f"{PREFIX}ln_f.bias", (c.hidden,)
    if not c.tied:
        yield "lm_head.weight", (c.vocabulary, c.hidden)


def read_gpt2(config: Gpt2Config, file: SafetensorsFile) -> dict[str, Tensor]:
    """The tensors of `tensor_shapes` from a checkpoint, with or without "transformer." in it.

    A tensor that is missing or has no place raises CheckpointError; see `SafetensorsFile.read`.
    """
    bare = not any(name.startswith(PREFIX) for name in file.names)

    def written(name: str) -> str:
        return name.removeprefix(PREFIX) if bare else name

    shapes = ((written(name), shape) for name, shape in tensor_shapes(config))
    tensors = file.read("GPT-2", shapes, copies={"lm_head.weight": written(f"{PREFIX}wte.weight")},
                        unused=lambda name: name.endswith(BUFFERS))
    names = (name for name, _ in tensor_shapes(config))
    return dict(zip(names, tensors.values(), strict=True))


def gpt2_network(config: Gpt2Config, tensors: Mapping[str, Tensor]) -> Network:
    """The language model over the tensors of `tensor_shapes`: tokens to logits."""
    c = config
    head_dim = c.hidden // c.heads

    def conv1d(name: str, x: str) -> Op:
        return Linear(name=name, x=x, weight=tensors[f"{name}.weight"].T.contiguous(),
                      bias=tensors[f"{name}.bias"])

    def norm(name: str, x: str) -> Op:
        return Norm(name=name, x=x, gain=tensors[f"{name}.weight"], bias=tensors[f"{name}.bias"],
                    eps=c.eps, center=True)

    def qkv(name: str, x: str) -> list[Op]:
        weights = tensors[f"{name}.weight"].T.contiguous().chunk(3)           # 3 x [hidden, hidden]
        biases = tensors[f"{name}.bias"].chunk(3)
        return [Linear(name=f"{name}.{part}", x=x, weight=w, bias=b)
                for part, w, b in zip("qkv", weights, biases, strict=True)]

    embedding = tensors[f"{PREFIX}wte.weight"]
    ops: list[Op] = [
        Embed(name=f"{PREFIX}wte", table=embedding),
        Embed(name=f"{PREFIX}positions", table=tensors[f"{PREFIX}wpe.weight"], index=POSITIONS),
        Add(name=f"{PREFIX}add", a=f"{PREFIX}wte", b=f"{PREFIX}positions"),
    ]
    x = f"{PREFIX}add"
    for i in range(c.layers):
        h = f"{PREFIX}h.{i}"
        scale = (head_dim**-0.5 if c.scaled else 1.0) / (i + 1 if c.by_layer else 1)
        ops += [
            norm(f"{h}.ln_1", x),
            *qkv(f"{h}.attn.c_attn", f"{h}.ln_1"),
            Attention(name=f"{h}.attn", q=f"{h}.attn.c_attn.q", k=f"{h}.attn.c_attn.k",
                      v=f"{h}.attn.c_attn.v", heads=c.heads, kv_heads=c.heads, head_dim=head_dim,
                      scale=scale, causal=True),
            conv1d(f"{h}.attn.c_proj", f"{h}.attn"),
            Add(name=f"{h}.add", a=f"{h}.attn.c_proj", b=x),
            norm(f"{h}.ln_2", f"{h}.add"),
            conv1d(f"{h}.mlp.c_fc", f"{h}.ln_2"),
            Function(name=f"{h}.mlp.act", x=f"{h}.mlp.c_fc", function=c.activation),
            conv1d(f"{h}.mlp.c_proj", f"{h}.mlp.act"),
            Add(name=f"{h}.add_1", a=f"{h}.add", b=f"{h}.mlp.c_proj"),
        ]
        x = f"{h}.add_1"
    classifier = embedding if c.tied else tensors["lm_head.weight"]
    ops += [norm(f"{PREFIX}ln_f", x),
            Linear(name="lm_head", x=f"{PREFIX}ln_f", weight=classifier)]
    return Network(ops=tuple(ops), outputs=(Output(x="lm_head"),), context=c.positions)
