"""Good checkpoints load to the same function; bad ones are refused in one sentence each."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from systolith.errors import UserError
from systolith.quant.checkpoint import BUNDLED, load_model
from systolith.quant.evaluate import sample
from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.llama_checkpoint import tensor_shapes
from systolith.quant.tokenizer import SPECIAL, SPECIAL_PIECES, Tokenizer
from tests.models import model_file

VOCAB = 264
SMALL = dict(dim=8, hidden_dim=12, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=VOCAB,
             max_seq_len=10, norm_eps=1e-5, rope_base=10000.0)
HEADER = [8, 12, 2, 2, 1, VOCAB, 10]
DESCRIPTION = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": VOCAB, "max_position_embeddings": 10, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False}


def vocabulary(size: int = VOCAB) -> Tokenizer:
    pieces = [*SPECIAL_PIECES, *(bytes([97 + i]) for i in range(size - SPECIAL))]
    return Tokenizer(pieces, [0.0] * size)


def make(**changes) -> Llama:
    torch.manual_seed(3)
    model = Llama(LlamaConfig(**SMALL | changes)).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.uniform_(-0.5, 0.5)
    return model


def same(a: Llama, b: Llama) -> bool:
    tokens = torch.arange(10)[None] * 11
    return torch.equal(a(tokens), b(tokens))


# llama2.c ---------------------------------------------------------------------------------------

def llama2c_bytes(model: Llama) -> bytes:
    """What llama2.c's exporter writes."""
    c, w = model.config, model.state_dict()
    vocab = c.vocab_size if c.tied_embedding else -c.vocab_size
    out = struct.pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab,
                      c.max_seq_len)
    names = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
             "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj",
             "mlp.up_proj"]
    tensors = [w["model.embed_tokens.weight"]]
    tensors += [w[f"model.layers.{i}.{n}.weight"] for n in names for i in range(c.n_layers)]
    tensors += [w["model.norm.weight"], torch.full((2, c.max_seq_len, c.head_dim // 2), math.nan)]
    if not c.tied_embedding:
        tensors.append(w["lm_head.weight"])
    return out + b"".join(t.numpy().astype("<f4").tobytes() for t in tensors)


@pytest.fixture
def llama2c(tmp_path):
    """Writes a .bin file, with its vocabulary beside it."""
    vocabulary().save(tmp_path / f"tok{VOCAB}.bin")

    def write(data: bytes):
        path = tmp_path / "model.bin"
        path.write_bytes(data)
        return path
    return write


def refusal(*args) -> str:
    with pytest.raises(UserError) as e:
        load_model(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("tied", [False, True])
def test_llama2c(llama2c, tied):
    model = make(rope_pairs="adjacent", tied_embedding=tied)
    loaded, tokenizer = load_model(str(llama2c(llama2c_bytes(model))))
    assert loaded.config == model.config
    assert len(tokenizer) == VOCAB
    assert same(loaded, model)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_llama2c_damaged(llama2c):
    whole = llama2c_bytes(make(rope_pairs="adjacent", tied_embedding=True))
    path = llama2c(whole[:-4])
    assert refusal(path) == (f"{path} is truncated: its header demands {len(whole)} bytes, but it "
                             f"has {len(whole) - 4}; copy it again")
    llama2c(whole[:20])
    assert refusal(path) == (f"{path} is truncated: 20 bytes do not hold a header of 28; "
                             f"copy it again")
    llama2c(whole + b"\0" * 4)
    assert refusal(path) == (f"{path} is not a llama2.c version-0 checkpoint: its header demands "
                             f"{len(whole)} bytes, but it has {len(whole) + 4}")
    llama2c(struct.pack("<2i", 0x616B3432, 2) + bytes(248))
    assert refusal(path) == (f"{path} is a llama2.c file of version 2, but only version 0 is "
                             f"supported; export it with --version 0")
    llama2c(b"PK\3\4" + bytes(100))
    assert refusal(path) == (f"{path} is a pickled PyTorch checkpoint; save it as "
                             f"model.safetensors, which cannot run code")


@pytest.mark.parametrize(("index", "value", "message"), [
    (0, 0, "is not a llama2.c checkpoint: its header says (0, 12, 2, 2, 1, 264, 10), "
           "which no model has"),
    (2, 1 << 30, "is not a llama2.c checkpoint: its header says "
                 "(8, 12, 1073741824, 2, 1, 264, 10), which no model has"),
    (3, 3, "is not a usable llama2.c checkpoint: dim must be an even multiple of n_heads, not 8 "
           "for 3 heads"),
    (4, 3, "is not a usable llama2.c checkpoint: n_kv_heads must divide n_heads, not 3 for "
           "2 heads"),
])
def test_llama2c_header(llama2c, index, value, message):
    whole = llama2c_bytes(make(rope_pairs="adjacent", tied_embedding=True))
    header = HEADER[:]
    header[index] = value
    path = llama2c(struct.pack("<7i", *header) + whole[28:])
    assert refusal(path) == f"{path} {message}"


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "a NaN"), (-math.inf, "an infinity")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_llama2c_not_a_number(llama2c, name, value, kind):
    model = make(rope_pairs="adjacent", tied_embedding=True)
    model.get_parameter(name).view(-1)[2] = value
    path = llama2c(llama2c_bytes(model))
    assert refusal(path) == (f"{path}: tensor {name} holds {kind}; the checkpoint is damaged or "
                             f"its training diverged")


def test_the_vocabulary_is_found_or_named(llama2c, tmp_path):
    path = llama2c(llama2c_bytes(make(rope_pairs="adjacent", tied_embedding=True)))
    beside = tmp_path / f"tok{VOCAB}.bin"
    beside.rename(tmp_path / "tokenizer.bin")
    assert len(load_model(path)[1]) == VOCAB
    elsewhere = tmp_path / "other"
    (tmp_path / "tokenizer.bin").rename(elsewhere)
    assert refusal(path) == (f"there is no vocabulary beside {path}; put tok{VOCAB}.bin or "
                             f"tokenizer.bin there (llama2.c's format), or name the file")
    assert len(load_model(path, elsewhere)[1]) == VOCAB
    tokenizer = vocabulary()
    assert load_model(path, tokenizer)[1] is tokenizer
    assert refusal(path, tmp_path / "none") == (
        f"cannot read the vocabulary {tmp_path / 'none'}: No such file or directory")
    vocabulary(266).save(elsewhere)
    fits = "use the vocabulary that it was trained with"
    assert refusal(path, elsewhere) == (
        f"{elsewhere} has 266 tokens, but the model has 264; {fits}")
    assert refusal(path, vocabulary(266)) == (
        f"the tokenizer has 266 tokens, but {path} has 264; {fits}")


# Hugging Face -----------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    """Writes a folder of config.json, model.safetensors and tokenizer.bin; None drops a key."""
    vocabulary().save(tmp_path / "tokenizer.bin")

    def write(tensors=None, **changes):
        config = {k: v for k, v in (DESCRIPTION | changes).items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights() if tensors is None else tensors, tmp_path / "model.safetensors")
        return tmp_path
    return write


def weights(**changes) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in make(**changes).state_dict().items()}


def test_folder(folder):
    model = make(rope_pairs="halves")
    assert same(load_model(folder())[0], model)
    loaded, tokenizer = load_model(folder() / "model.safetensors")
    assert same(loaded, model)
    assert loaded.config == model.config
    assert len(tokenizer) == VOCAB


def test_folder_with_our_rope_pairs(folder):
    loaded, _ = load_model(folder(rope_pairs="adjacent"))
    assert same(loaded, make(rope_pairs="adjacent"))


def test_folder_tied(folder):
    model = make(tied_embedding=True)
    tensors = weights(tied_embedding=True)
    assert same(load_model(folder(tensors, tie_word_embeddings=True))[0], model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    assert same(load_model(folder(tensors, tie_word_embeddings=True))[0], model)
    tensors["lm_head.weight"][3, 3] += 1
    path = folder(tensors, tie_word_embeddings=True)
    assert refusal(path) == (
        f"{path / 'model.safetensors'} has a tensor lm_head.weight, for which config.json has no "
        f"place; the two belong to different models, or the architecture is not Llama")


def test_folder_half_precision(folder):
    tensors = {k: v.to(torch.bfloat16) for k, v in weights().items()}
    loaded, _ = load_model(folder(tensors))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].float()), name


def test_folder_defaults_and_harmless_entries(folder):
    tensors = weights(n_kv_heads=2)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    loaded, _ = load_model(folder(
        tensors, num_key_value_heads=None, max_position_embeddings=None, rms_norm_eps=None,
        rope_theta=None, tie_word_embeddings=None, head_dim=4, attention_bias=False,
        rope_scaling={"rope_type": "default"},
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    c = loaded.config
    assert (c.n_kv_heads, c.max_seq_len, c.norm_eps, c.rope_base) == (2, 2048, 1e-6, 500.0)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(model_type="mistral"),
     "the architecture 'mistral' is not supported; model_type must be 'llama'"),
    (dict(model_type=None), "the architecture None is not supported; model_type must be 'llama'"),
    (dict(attention_bias=True), "layers with a bias (attention_bias) are not supported"),
    (dict(mlp_bias=True), "layers with a bias (mlp_bias) are not supported"),
    (dict(hidden_act="gelu"),
     "the activation function 'gelu' is not supported; hidden_act must be 'silu'"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}),
     "RoPE scaling (rope_scaling: 'linear') is not supported"),
    (dict(rope_parameters={"rope_type": "llama3"}),
     "RoPE scaling (rope_parameters: 'llama3') is not supported"),
    (dict(rope_scaling=3), "RoPE scaling (rope_scaling: 3) is not supported"),
    (dict(partial_rotary_factor=0.5),
     "rotating a part of each head (partial_rotary_factor) is not supported"),
    (dict(quantization_config={"bits": 4}),
     "the checkpoint is already quantized (quantization_config); use the float one that it was "
     "made from"),
    (dict(hidden_size=None), "hidden_size must be a positive integer, but is missing"),
    (dict(hidden_size="8"), "hidden_size must be a positive integer, not '8'"),
    (dict(num_hidden_layers=0), "num_hidden_layers must be a positive integer, not 0"),
    (dict(head_dim=16), "head_dim must be hidden_size / num_attention_heads, not 16 for 8 / 2"),
    (dict(rms_norm_eps="no"), "norm_eps must be a positive number, not 'no'"),
    (dict(rope_pairs="thirds"), "rope_pairs must be one of adjacent, halves, not 'thirds'"),
    (dict(num_key_value_heads=3), "n_kv_heads must divide n_heads, not 3 for 2 heads"),
])
def test_folder_description(folder, changes, message):
    path = folder(**changes)
    assert refusal(path) == f"{path / 'config.json'}: {message}"


def test_folder_shapes_disagree(folder):
    path = folder(intermediate_size=16)
    assert refusal(path) == (
        f"{path / 'model.safetensors'}: tensor model.layers.0.mlp.gate_proj.weight has the shape "
        f"[12, 8], but config.json demands [16, 8]")
    path = folder(hidden_size=1 << 40)  # refused before anything of that size is made
    assert refusal(path) == (
        f"{path / 'model.safetensors'}: tensor model.embed_tokens.weight has the shape [264, 8], "
        f"but config.json demands [264, 1099511627776]")


def test_folder_missing_and_unexpected_tensors(folder):
    path = folder(num_hidden_layers=10 ** 9)
    file = path / "model.safetensors"
    assert refusal(path) == (
        f"{file} has no tensor model.layers.2.input_layernorm.weight, which config.json demands; "
        f"the two belong to different models")
    folder(num_hidden_layers=1)
    assert refusal(path) == (
        f"{file} has a tensor model.layers.1.input_layernorm.weight, for which config.json has no "
        f"place; the two belong to different models, or the architecture is not Llama")
    tensors = weights()
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(8)
    folder(tensors)
    assert refusal(path).startswith(
        f"{file} has a tensor model.layers.0.self_attn.q_proj.bias, for which")
    tensors = weights()
    del tensors["lm_head.weight"]
    folder(tensors)
    assert refusal(path).startswith(f"{file} has no tensor lm_head.weight, which")


def test_folder_values(folder):
    tensors = weights()
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name][1, 2] = math.nan
    path = folder(tensors)
    file = path / "model.safetensors"
    assert refusal(path) == (f"{file}: tensor {name} holds a NaN; the checkpoint is damaged or its "
                             f"training diverged")
    tensors[name][1, 2] = math.inf
    folder(tensors)
    assert refusal(path).startswith(f"{file}: tensor {name} holds an infinity;")
    tensors[name] = torch.zeros(4, 8, dtype=torch.int8)
    folder(tensors)
    assert refusal(path) == (
        f"{file}: tensor {name} holds torch.int8, but must hold float32, float16 or bfloat16; load "
        f"the checkpoint before its quantization")


def test_folder_damaged(folder):
    path = folder()
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:100], whole[:4], b"", b"\xff" * 64):
        file.write_bytes(data)
        message = refusal(path)
        assert message.startswith(f"{file} is truncated or not a safetensors file ("), message
        assert message.endswith("; copy it again")
    (path / "config.json").write_text("{")
    assert refusal(path).startswith(f"{path / 'config.json'} is not JSON: ")
    (path / "config.json").write_text("[]")
    assert refusal(path) == f"{path / 'config.json'} must hold a JSON object"
    (path / "config.json").unlink()
    assert refusal(path) == (f"cannot read {path / 'config.json'}, which must describe the model: "
                             f"No such file or directory")
    file.rename(path / "model.safetensors.index.json")
    assert refusal(path) == (f"cannot read {path / 'config.json'}, which must describe the model: "
                             f"No such file or directory")
    (path / "model.safetensors.index.json").unlink()
    assert refusal(path) == (f"{path} has no model.safetensors; save the model there in that "
                             f"format")
    assert refusal(path / "none") == (
        f"{path / 'none'} does not exist; give a .bin file, a .safetensors file, a folder with "
        f"model.safetensors, or the word bundled")
    (path / "model.gguf").touch()
    assert refusal(path / "model.gguf") == (
        f"{path / 'model.gguf'} is neither a llama2.c .bin file nor a .safetensors file; convert "
        f"it to one of the two")


def test_the_shapes_are_those_of_the_modules():
    for tied in (False, True):
        model = make(tied_embedding=tied)
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        assert dict(tensor_shapes(model.config)) == shapes


# Real models ------------------------------------------------------------------------------------

def test_stories260k_tells_the_pinned_story():
    """llama2.c pins this text: the greedy story of the model, 200 steps from BOS."""
    model, tokenizer = load_model(model_file("stories260K.bin"), model_file("tok512.bin"))
    text = tokenizer.decode(sample(model, 201, seed=0, temperature=0))
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
        "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do.")


def test_the_bundled_model():
    model, tokenizer = load_model("bundled")
    assert model.config == LlamaConfig(
        dim=64, hidden_dim=176, n_layers=5, n_heads=4, n_kv_heads=2, vocab_size=512,
        max_seq_len=512, norm_eps=1e-5, rope_base=10000.0, rope_pairs="halves",
        tied_embedding=True)
    assert len(tokenizer) == 512
    assert (BUNDLED / "model.safetensors").stat().st_size <= 1_200_000
    for name, tensor in model.state_dict().items():
        # A row's largest weight sets its int8 step: a lone outlier would coarsen all the others.
        rows = tensor.numpy().reshape(len(tensor), -1)
        if tensor.ndim == 2:
            ratio = np.abs(rows).max(1) / np.sqrt(np.mean(rows ** 2, axis=1))
            assert np.median(ratio) < 6, (name, float(np.median(ratio)))
