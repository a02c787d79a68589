"""A Llama as a float network, written by hand: nothing has to be recognised."""

from systolith.quant.llama import Llama
from systolith.quant.network import (
    Add,
    Attention,
    Embed,
    Function,
    Linear,
    Multiply,
    Network,
    Norm,
    Op,
    Output,
    Rope,
)


def llama_network(model: Llama) -> Network:
    """The network of a Llama: tokens to logits, under the names that `quantize` gives its tensors.

    Its weights are the model's own tensors, not copies.
    """
    c, backbone = model.config, model.model
    ops: list[Op] = [Embed(name="embedding", table=backbone.embed_tokens.weight)]
    x = "embedding"
    for i, block in enumerate(backbone.layers):
        a, f = f"layers.{i}.attention", f"layers.{i}.ffn"
        attention, mlp = block.self_attn, block.mlp
        rope = {"cos": backbone.cos, "sin": backbone.sin, "head_dim": c.head_dim,
                "pairs": c.rope_pairs}
        ops += [
            Norm(name=f"{a}.norm", x=x, gain=block.input_layernorm.weight, eps=c.norm_eps,
                 center=False),
            Linear(name=f"{a}.q_proj", x=f"{a}.norm", weight=attention.q_proj.weight),
            Rope(name=f"{a}.q", x=f"{a}.q_proj", **rope),
            Linear(name=f"{a}.k_proj", x=f"{a}.norm", weight=attention.k_proj.weight),
            Rope(name=f"{a}.k", x=f"{a}.k_proj", **rope),
            Linear(name=f"{a}.v", x=f"{a}.norm", weight=attention.v_proj.weight),
            Attention(name=f"{a}.context", q=f"{a}.q", k=f"{a}.k", v=f"{a}.v", heads=c.n_heads,
                      kv_heads=c.n_kv_heads, head_dim=c.head_dim, scale=c.head_dim**-0.5,
                      causal=True),
            Linear(name=f"{a}.o_proj", x=f"{a}.context", weight=attention.o_proj.weight),
            Add(name=f"{a}.residual", a=f"{a}.o_proj", b=x),
            Norm(name=f"{f}.norm", x=f"{a}.residual", gain=block.post_attention_layernorm.weight,
                 eps=c.norm_eps, center=False),
            Linear(name=f"{f}.gate_proj", x=f"{f}.norm", weight=mlp.gate_proj.weight),
            Function(name=f"{f}.gate", x=f"{f}.gate_proj", function="silu"),
            Linear(name=f"{f}.up", x=f"{f}.norm", weight=mlp.up_proj.weight),
            Multiply(name=f"{f}.product", a=f"{f}.gate", b=f"{f}.up"),
            Linear(name=f"{f}.down", x=f"{f}.product", weight=mlp.down_proj.weight),
            Add(name=f"{f}.residual", a=f"{f}.down", b=f"{a}.residual"),
        ]
        x = f"{f}.residual"
    ops += [Norm(name="norm", x=x, gain=backbone.norm.weight, eps=c.norm_eps, center=False),
            Linear(name="logits", x="norm", weight=model.classifier())]
    return Network(ops=tuple(ops), outputs=(Output(x="logits"),), context=c.max_seq_len)
