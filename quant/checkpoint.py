"""Loads a float model and its vocabulary, or says in one sentence why that is impossible.

Three sources: a llama2.c version-0 `.bin` file; a `.safetensors` file, or the folder that holds it,
with `config.json` beside it and tensors under Hugging Face's LlamaForCausalLM names; and the word
"bundled" for the model inside this package. The vocabulary is llama2.c's format in all three.
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from systolith.errors import CheckpointError
from systolith.quant.llama import ROPE_PAIRS, Llama, LlamaConfig
from systolith.quant.tokenizer import Tokenizer

BUNDLED = Path(__file__).parent / "bundled"

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432                     # "ak42": llama2.c's version 1 and later
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def load_model(path: str | Path,
               tokenizer: str | Path | Tokenizer | None = None) -> tuple[Llama, Tokenizer]:
    """The float32 model and its tokenizer.

    path       "bundled", a llama2.c .bin file, a .safetensors file, or a folder with
               model.safetensors
    tokenizer  the vocabulary or its file; otherwise tok<vocab_size>.bin or tokenizer.bin beside
               the model

    The model is in evaluation mode and asks for no gradients. A file that is missing, truncated,
    of another format, version or architecture, that disagrees with its own description or holds a
    NaN or an infinity raises CheckpointError; a vocabulary that does not fit, TokenizerError.
    """
    path = BUNDLED if str(path) == "bundled" else Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a .bin file, a .safetensors file, a "
                              f"folder with model.safetensors, or the word bundled")
    if path.is_dir():
        path = _inside(path)
    if path.suffix == ".safetensors":
        config, tensors = _read_safetensors(path)
    elif path.suffix == ".bin":
        config, tensors = _read_llama2c(path)
    else:
        raise CheckpointError(f"{path} is neither a llama2.c .bin file nor a .safetensors file; "
                              f"convert it to one of the two")
    if not isinstance(tokenizer, Tokenizer):
        file = Path(tokenizer) if tokenizer is not None else _vocabulary(path, config)
        tokenizer = Tokenizer.load(file, config.vocab_size)
    elif len(tokenizer) != config.vocab_size:
        raise CheckpointError(f"the tokenizer has {len(tokenizer)} tokens, but {path} has "
                              f"{config.vocab_size}; use the vocabulary that it was trained with")
    model = Llama(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), tokenizer


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


def _inside(folder: Path) -> Path:
    """The checkpoint file in a folder."""
    file = folder / "model.safetensors"
    if file.exists():
        return file
    if (folder / "model.safetensors.index.json").exists():
        raise CheckpointError(f"{folder} holds a checkpoint in several files; save it as one "
                              f"model.safetensors")
    raise CheckpointError(f"{folder} has no model.safetensors; save the model there in that format")


def _vocabulary(path: Path, config: LlamaConfig) -> Path:
    """The vocabulary file beside a checkpoint."""
    names = [f"tok{config.vocab_size}.bin", "tokenizer.bin"]
    for name in names:
        if path.with_name(name).exists():
            return path.with_name(name)
    raise CheckpointError(f"there is no vocabulary beside {path}; put {' or '.join(names)} there "
                          f"(llama2.c's format), or name the file")


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as float32, once it holds numbers only."""
    tensor = tensor.float()
    if not tensor.isfinite().all():
        kind = "a NaN" if tensor.isnan().any() else "an infinity"
        raise CheckpointError(f"{path}: tensor {name} holds {kind}; "
                              f"the checkpoint is damaged or its training diverged")
    return tensor


# llama2.c version 0 -----------------------------------------------------------------------------

def _read_llama2c(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
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
            tensors[name] = _finite(path, name, tensor)
            continue
        for i in range(config.n_layers):
            tensors[name.format(i)] = _finite(path, name.format(i), tensor[i].clone())
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

def _read_safetensors(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    config = _read_config(path.with_name("config.json"))
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = {n for n in file.keys() if not n.endswith("rotary_emb.inv_freq")}  # noqa: SIM118
            for name, shape in tensor_shapes(config):
                if name not in names:
                    raise CheckpointError(f"{path} has no tensor {name}, which config.json "
                                          f"demands; the two belong to different models")
                found = tuple(file.get_slice(name).get_shape())
                if found != shape:
                    raise CheckpointError(f"{path}: tensor {name} has the shape {list(found)}, but "
                                          f"config.json demands {list(shape)}")
                tensor = file.get_tensor(name)
                if tensor.dtype not in _FLOATS:
                    raise CheckpointError(f"{path}: tensor {name} holds {tensor.dtype}, but must "
                                          f"hold float32, float16 or bfloat16; load the "
                                          f"checkpoint before its quantization")
                tensors[name] = _finite(path, name, tensor)
            extra = sorted(names - tensors.keys())
            if extra == ["lm_head.weight"] and torch.equal(
                    file.get_tensor(extra[0]).float(), tensors["model.embed_tokens.weight"]):
                extra = []  # a tied classifier that was written all the same
            if extra:
                raise CheckpointError(f"{path} has a tensor {extra[0]}, for which config.json "
                                      f"has no place; the two belong to different models, or "
                                      f"the architecture is not Llama")
    except SafetensorError as e:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({e}); "
                              f"copy it again") from e
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e
    return config, tensors


def _read_config(path: Path) -> LlamaConfig:
    """Hugging Face's config.json, in which everything that Llama lacks is refused."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CheckpointError(f"cannot read {path}, which must describe the model: "
                              f"{e.strerror}") from e
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    _refuse(path, raw)

    def integer(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problem = f"not {value!r}" if key in raw else "but is missing"
            raise CheckpointError(f"{path}: {key} must be a positive integer, {problem}")
        return value

    dim, heads = integer("hidden_size"), integer("num_attention_heads")
    if integer("head_dim", max(dim // heads, 1)) * heads != dim:
        raise CheckpointError(f"{path}: head_dim must be hidden_size / num_attention_heads, not "
                              f"{raw.get('head_dim', dim // heads)} for {dim} / {heads}")
    layers, kv_heads = integer("num_hidden_layers"), integer("num_key_value_heads", heads)
    hidden, vocab = integer("intermediate_size"), integer("vocab_size")
    positions = integer("max_position_embeddings", 2048)
    rope = raw.get("rope_parameters") or {}
    try:
        return LlamaConfig(
            dim=dim, hidden_dim=hidden, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            vocab_size=vocab, max_seq_len=positions,
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_base=raw.get("rope_theta", rope.get("rope_theta", 10000.0)),
            rope_pairs=raw.get("rope_pairs", ROPE_PAIRS[1]),
            tied_embedding=raw.get("tie_word_embeddings", False))
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e


def _refuse(path: Path, raw: dict[str, Any]) -> None:
    """Raises on the first feature that this package does not implement."""
    kind = raw.get("model_type")
    if kind != "llama":
        raise CheckpointError(f"{path}: the architecture {kind!r} is not supported; "
                              f"model_type must be 'llama'")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise CheckpointError(f"{path}: layers with a bias ({key}) are not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{path}: the activation function {raw['hidden_act']!r} is not "
                              f"supported; hidden_act must be 'silu'")
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        scaling = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
        if scaling not in (None, "default") or not isinstance(rope, dict):
            raise CheckpointError(f"{path}: RoPE scaling ({key}: {scaling!r}) is not supported")
    if raw.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(f"{path}: rotating a part of each head (partial_rotary_factor) is "
                              f"not supported")
    if raw.get("quantization_config"):
        raise CheckpointError(f"{path}: the checkpoint is already quantized (quantization_config); "
                              f"use the float one that it was made from")
