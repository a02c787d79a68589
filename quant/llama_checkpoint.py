"""A Llama's configuration and weights from its files.

Two formats: llama2.c's version-0 `.bin` file, which says everything itself; and safetensors under
the names of Hugging Face's LlamaForCausalLM, with a config.json.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from systolith.errors import CheckpointError
from systolith.quant.description import Description
from systolith.quant.llama import ROPE_PAIRS, LlamaConfig
from systolith.quant.safetensors_file import SafetensorsFile, finite

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432                     # "ak42": llama2.c's version 1 and later


def tensor_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint of this model holds."""
    c = config
    yield "model.embed_tokens.weight", (c.vocab_size, c.dim)
    yield "model.norm.weight", (c.dim,)
    if not c.tied_embedding:
        yield "lm_head.weight", (c.vocab_size, c.dim)
    for i in range(c.n_layers):
        for name, shape in (
            ("input_layernorm", (c.dim,)),
            ("self_attn.q_proj", (c.dim, c.dim)),
            ("self_attn.k_proj", (c.kv_dim, c.dim)),
            ("self_attn.v_proj", (c.kv_dim, c.dim)),
            ("self_attn.o_proj", (c.dim, c.dim)),
            ("post_attention_layernorm", (c.dim,)),
            ("mlp.gate_proj", (c.hidden_dim, c.dim)),
            ("mlp.up_proj", (c.hidden_dim, c.dim)),
            ("mlp.down_proj", (c.dim, c.hidden_dim)),
        ):
            yield f"model.layers.{i}.{name}.weight", shape


# llama2.c version 0 -----------------------------------------------------------------------------

def read_llama2c(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and tensors of a .bin file; CheckpointError where it is none, or damaged."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    if data[:2] in (b"PK", b"\x80\x02"):
        raise CheckpointError(f"{path} is a pickled PyTorch checkpoint; "
                              f"save it as model.safetensors, which cannot run code")
    if len(data) < _HEADER.size:
        raise CheckpointError(f"{path} is truncated: {len(data)} bytes do not hold a header of "
                              f"{_HEADER.size}; copy it again")
    fields = _HEADER.unpack_from(data)
    if fields[0] == _MAGIC:
        raise CheckpointError(f"{path} is a llama2.c file of version {fields[1]}, but only "
                              f"version 0 is supported; export it with --version 0")
    dim, hidden, layers, heads, kv_heads, vocab, length = fields
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), length) < 1 or max(fields) > 1 << 24:
        raise CheckpointError(f"{path} is not a llama2.c checkpoint: its header says {fields}, "
                              f"which no model has")
    try:
        config = LlamaConfig(
            dim=dim, hidden_dim=hidden, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            vocab_size=abs(vocab), max_seq_len=length, norm_eps=1e-5, rope_base=10000.0,
            rope_pairs="adjacent", tied_embedding=vocab > 0)
    except CheckpointError as e:
        raise CheckpointError(f"{path} is not a usable llama2.c checkpoint: {e}") from e
    layout = list(_llama2c_layout(config))
    demanded = _HEADER.size + 4 * sum(math.prod(shape) for _, shape in layout)
    if len(data) < demanded:
        raise CheckpointError(f"{path} is truncated: its header demands {demanded} bytes, but it "
                              f"has {len(data)}; copy it again")
    if len(data) > demanded:
        raise CheckpointError(f"{path} is not a llama2.c version-0 checkpoint: its header demands "
                              f"{demanded} bytes, but it has {len(data)}")
    tensors: dict[str, Tensor] = {}
    at = _HEADER.size
    for name, shape in layout:
        count = math.prod(shape)
        values = np.frombuffer(data, dtype="<f4", count=count, offset=at).reshape(shape)
        at += 4 * count
        if name is None:
            continue
        tensor = torch.from_numpy(values.astype(np.float32))
        if "{}" not in name:
            tensors[name] = finite(path, name, tensor)
            continue
        for i in range(config.n_layers):
            tensors[name.format(i)] = finite(path, name.format(i), tensor[i].clone())
    return config, tensors


def _llama2c_layout(config: LlamaConfig) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """Name ({} stands for the layer, None is skipped) and shape of each tensor in file order."""
    c = config
    layer = "model.layers.{}."
    n = c.n_layers
    yield "model.embed_tokens.weight", (c.vocab_size, c.dim)
    yield layer + "input_layernorm.weight", (n, c.dim)
    yield layer + "self_attn.q_proj.weight", (n, c.dim, c.dim)
    yield layer + "self_attn.k_proj.weight", (n, c.kv_dim, c.dim)
    yield layer + "self_attn.v_proj.weight", (n, c.kv_dim, c.dim)
    yield layer + "self_attn.o_proj.weight", (n, c.dim, c.dim)
    yield layer + "post_attention_layernorm.weight", (n, c.dim)
    yield layer + "mlp.gate_proj.weight", (n, c.hidden_dim, c.dim)
    yield layer + "mlp.down_proj.weight", (n, c.dim, c.hidden_dim)
    yield layer + "mlp.up_proj.weight", (n, c.hidden_dim, c.dim)
    yield "model.norm.weight", (c.dim,)
    yield None, (2, c.max_seq_len, c.head_dim // 2)  # RoPE tables, which we compute ourselves
    if not c.tied_embedding:
        yield "lm_head.weight", (c.vocab_size, c.dim)


# Hugging Face -----------------------------------------------------------------------------------

def read_llama(config: LlamaConfig, file: SafetensorsFile) -> dict[str, Tensor]:
    """The tensors of `tensor_shapes` from a checkpoint; see `SafetensorsFile.read`."""
    # A tied classifier may have been written all the same, and old files hold the frequencies.
    return file.read("Llama", tensor_shapes(config),
                     copies={"lm_head.weight": "model.embed_tokens.weight"},
                     unused=lambda name: name.endswith("rotary_emb.inv_freq"))


def llama_config(description: Description) -> LlamaConfig:
    """The configuration in a config.json, in which everything that Llama lacks is refused."""
    d = description
    _refuse(d)
    dim, heads = d.integer("hidden_size"), d.integer("num_attention_heads")
    if d.integer("head_dim", max(dim // heads, 1)) * heads != dim:
        raise d.error(f"head_dim must be hidden_size / num_attention_heads, not "
                      f"{d.get('head_dim', dim // heads)} for {dim} / {heads}")
    layers, kv_heads = d.integer("num_hidden_layers"), d.integer("num_key_value_heads", heads)
    hidden, vocab = d.integer("intermediate_size"), d.integer("vocab_size")
    positions = d.integer("max_position_embeddings", 2048)
    rope = d.raw.get("rope_parameters") or {}
    try:
        return LlamaConfig(
            dim=dim, hidden_dim=hidden, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            vocab_size=vocab, max_seq_len=positions,
            norm_eps=d.raw.get("rms_norm_eps", 1e-6),
            rope_base=d.raw.get("rope_theta", rope.get("rope_theta", 10000.0)),
            rope_pairs=d.raw.get("rope_pairs", ROPE_PAIRS[1]),
            tied_embedding=d.raw.get("tie_word_embeddings", False))
    except CheckpointError as e:
        raise d.error(str(e)) from e


def _refuse(d: Description) -> None:
    """Raises on the first feature that this package does not implement."""
    for key in ("attention_bias", "mlp_bias"):
        if d.raw.get(key):
            raise d.error(f"layers with a bias ({key}) are not supported")
    if d.raw.get("hidden_act", "silu") != "silu":
        raise d.error(f"the activation function {d.raw['hidden_act']!r} is not supported; "
                      f"hidden_act must be 'silu'")
    for key in ("rope_scaling", "rope_parameters"):
        rope = d.raw.get(key) or {}
        scaling = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
        if scaling not in (None, "default") or not isinstance(rope, dict):
            raise d.error(f"RoPE scaling ({key}: {scaling!r}) is not supported")
    if d.raw.get("partial_rotary_factor", 1) != 1:
        raise d.error("rotating a part of each head (partial_rotary_factor) is not supported")
    d.refuse_quantized()
