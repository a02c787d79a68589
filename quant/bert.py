"""A BERT checkpoint as a float network: the encoder, from tokens to the last hidden state.

Tensors have the names of Hugging Face's BertModel, and so have the operations, as if the module had
been captured. Left out are the pooler and the heads of the pre-training, which nothing after the
encoder reads. Every token belongs to the first segment: row 0 of the token-type table is added to
the position table, and there is no second index input.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from systolith.errors import CheckpointError
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


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Everything about a BERT encoder that is not a weight.

    hidden      width of the residual stream; a multiple of ``heads``
    inner       width inside the feed-forward network
    layers      transformer blocks, each normed after its two sums
    heads       of the attention, which sees the whole sequence
    vocabulary  rows of the token embedding
    positions   rows of the position embedding: the longest sequence
    segments    rows of the token-type embedding
    activation  of the feed-forward network, by its name in `network.FUNCTIONS`
    eps         added to the variance in LayerNorm
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    segments: int
    activation: str
    eps: float


def bert_config(description: Description) -> BertConfig:
    """The configuration in a config.json; CheckpointError for whatever is not implemented here."""
    d = description
    d.refuse_quantized()
    for key in ("is_decoder", "add_cross_attention"):
        if d.get(key):
            raise d.error(f"a BERT that is a decoder ({key}) is not supported")
    positions = d.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise d.error(f"relative positions (position_embedding_type: {positions!r}) are not "
                      f"supported")
    config = BertConfig(
        hidden=d.integer("hidden_size"), inner=d.integer("intermediate_size"),
        layers=d.integer("num_hidden_layers"), heads=d.integer("num_attention_heads"),
        vocabulary=d.integer("vocab_size"), positions=d.integer("max_position_embeddings"),
        segments=d.integer("type_vocab_size", 2), activation=d.activation("hidden_act", "gelu"),
        eps=d.number("layer_norm_eps", 1e-12))
    if config.hidden % config.heads:
        raise d.error(f"hidden_size must be a multiple of num_attention_heads, not "
                      f"{config.hidden} for {config.heads} heads")
    return config


def tensor_shapes(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that `bert_network` needs."""
    c = config
    table = "embeddings.{}_embeddings.weight".format
    yield table("word"), (c.vocabulary, c.hidden)
    yield table("position"), (c.positions, c.hidden)
    yield table("token_type"), (c.segments, c.hidden)
    yield "embeddings.LayerNorm.weight", (c.hidden,)
    yield "embeddings.LayerNorm.bias", (c.hidden,)
    for i in range(c.layers):
        for name, shape in (
            ("attention.self.query", (c.hidden, c.hidden)),
            ("attention.self.key", (c.hidden, c.hidden)),
            ("attention.self.value", (c.hidden, c.hidden)),
            ("attention.output.dense", (c.hidden, c.hidden)),
            ("attention.output.LayerNorm", (c.hidden,)),
            ("intermediate.dense", (c.inner, c.hidden)),
            ("output.dense", (c.hidden, c.inner)),
            ("output.LayerNorm", (c.hidden,)),
        ):
            yield f"encoder.layer.{i}.{name}.weight", shape
            yield f"encoder.layer.{i}.{name}.bias", shape[:1]


def read_bert(config: BertConfig, file: SafetensorsFile) -> dict[str, Tensor]:
    """The tensors of `tensor_shapes` from a checkpoint, with or without "bert." before each name.

    The first checkpoints say gamma and beta for weight and bias of a LayerNorm. A head that was
    trained for a task, and anything else that has no place, raises CheckpointError.
    """
    prefix = "bert." if any(name.startswith("bert.") for name in file.names) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in file.names)

    def written(name: str) -> str:
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        return prefix + name

    def unused(name: str) -> bool:
        inside = name.removeprefix(prefix)
        return (inside == "embeddings.position_ids"
                or inside.startswith("pooler.") or name.startswith("cls."))

    head = sorted(n for n in file.names if n.startswith(("classifier.", "qa_outputs.")))
    if head:
        raise CheckpointError(f"{file.path} has a head for a task ({head[0]}), which is not "
                              f"supported here; capture the torch module instead")
    shapes = ((written(name), shape) for name, shape in tensor_shapes(config))
    tensors = file.read("BERT", shapes, unused=unused)
    names = (name for name, _ in tensor_shapes(config))
    return dict(zip(names, tensors.values(), strict=True))


def bert_network(config: BertConfig, tensors: Mapping[str, Tensor], *, pool: str = "none",
                 normalize: bool = False, context: int | None = None) -> Network:
    """The encoder over the tensors of `tensor_shapes`; ``tokens`` is its only input.

    ``pool``, ``normalize``: of the output (see `network.Output`), the last hidden state [B, T,
    hidden]. ``context``: longest sequence, where it is to be shorter than the position table.
    """
    c = config
    context = min(c.positions, context or c.positions)

    def linear(name: str, x: str) -> Op:
        return Linear(name=name, x=x, weight=tensors[f"{name}.weight"],
                      bias=tensors[f"{name}.bias"])

    def norm(name: str, x: str) -> Op:
        return Norm(name=name, x=x, gain=tensors[f"{name}.weight"], bias=tensors[f"{name}.bias"],
                    eps=c.eps, center=True)

    e = "embeddings"
    positions = (tensors[f"{e}.position_embeddings.weight"][:context]
                 + tensors[f"{e}.token_type_embeddings.weight"][0])
    ops: list[Op] = [
        Embed(name=f"{e}.word_embeddings", table=tensors[f"{e}.word_embeddings.weight"]),
        Embed(name=f"{e}.positions", table=positions, index=POSITIONS),
        Add(name=f"{e}.add", a=f"{e}.word_embeddings", b=f"{e}.positions"),
        norm(f"{e}.LayerNorm", f"{e}.add"),
    ]
    x = f"{e}.LayerNorm"
    for i in range(c.layers):
        layer = f"encoder.layer.{i}"
        a, inner = f"{layer}.attention", f"{layer}.intermediate"
        ops += [
            linear(f"{a}.self.query", x),
            linear(f"{a}.self.key", x),
            linear(f"{a}.self.value", x),
            Attention(name=f"{a}.self", q=f"{a}.self.query", k=f"{a}.self.key",
                      v=f"{a}.self.value", heads=c.heads, kv_heads=c.heads,
                      head_dim=c.hidden // c.heads, scale=(c.hidden // c.heads) ** -0.5,
                      causal=False),
            linear(f"{a}.output.dense", f"{a}.self"),
            Add(name=f"{a}.output", a=f"{a}.output.dense", b=x),
            norm(f"{a}.output.LayerNorm", f"{a}.output"),
            linear(f"{inner}.dense", f"{a}.output.LayerNorm"),
            Function(name=f"{inner}.intermediate_act_fn", x=f"{inner}.dense",
                     function=c.activation),
            linear(f"{layer}.output.dense", f"{inner}.intermediate_act_fn"),
            Add(name=f"{layer}.output", a=f"{layer}.output.dense",
                b=f"{a}.output.LayerNorm"),
            norm(f"{layer}.output.LayerNorm", f"{layer}.output"),
        ]
        x = f"{layer}.output.LayerNorm"
    return Network(ops=tuple(ops), outputs=(Output(x=x, pool=pool, normalize=normalize),),
                   context=context)
