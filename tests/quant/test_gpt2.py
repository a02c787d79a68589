"""GPT-2 folders that `transformers` wrote load to the function that it computes."""

import math

import pytest
import torch

from systolith.errors import UserError
from systolith.quant.capture import capture
from systolith.quant.checkpoint import load_network
from systolith.quant.network import Function
from tests.quant.foreign import (
    CONTEXT,
    VOCABULARY,
    batch,
    close,
    describe,
    put,
    randomized,
    tensors,
)


def make(hf, seed: int = 0, **changes):
    config = dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=CONTEXT,
                  bos_token_id=1, eos_token_id=2)
    return randomized(hf.GPT2LMHeadModel(hf.GPT2Config(**config | changes)), seed)


@pytest.fixture
def folder(hf, tmp_path):
    make(hf).save_pretrained(tmp_path)
    return tmp_path


def check(network, module) -> None:
    """The logits of padded batches."""
    assert network.generative and network.vocabulary == VOCABULARY and network.context == CONTEXT
    for longest in (2, 7, CONTEXT):
        lengths = torch.tensor([longest, 1, max(longest // 2, 1)])
        ids, mask = batch(lengths)
        (ours,) = network.results(network.run({"tokens": ids}, lengths), lengths)
        theirs = module(input_ids=ids, attention_mask=mask).logits
        close(ours[mask.bool()], theirs[mask.bool()])


def refusal(path) -> str:
    with pytest.raises(UserError) as e:
        load_network(path)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("changes", [
    dict(), dict(n_inner=24), dict(tie_word_embeddings=False), dict(scale_attn_weights=False),
    dict(scale_attn_by_inverse_layer_idx=True), dict(activation_function="relu"),
    dict(layer_norm_epsilon=1e-3), dict(reorder_and_upcast_attn=True),
], ids=str)
def test_gpt2(hf, tmp_path, changes):
    module = make(hf, 5, **changes)
    module.save_pretrained(tmp_path)
    loaded = load_network(tmp_path)
    assert (loaded.family, loaded.name) == ("gpt2", tmp_path.name)
    assert (loaded.tokenizer, loaded.bos, loaded.eos) == (None, 1, 2)
    function = "relu" if "activation_function" in changes else "gelu_tanh"
    assert [f.function for f in loaded.network.of_kind(Function)] == [function] * 2
    check(loaded.network, module)


def test_it_is_what_would_be_captured(hf, folder):
    ids, mask = batch(torch.tensor([5, 5]))
    captured = capture(make(hf), {"input_ids": ids, "attention_mask": mask})
    described = [[(type(op), op.name, op.inputs) for op in network.ops]
                 for network in (load_network(folder).network, captured)]
    assert described[0] == described[1]


def test_bare_names_and_buffers(hf, folder):
    bare = {k.removeprefix("transformer."): v for k, v in tensors(folder).items()}
    mask = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril()
    put(folder, bare | {"h.0.attn.bias": mask, "h.0.attn.masked_bias": torch.tensor(-1e4)})
    check(load_network(folder).network, make(hf))


def test_a_tied_head_that_was_written(hf, folder):
    weights = tensors(folder)
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    put(folder, weights)
    check(load_network(folder).network, make(hf))
    weights["lm_head.weight"][3, 3] += 1
    file = put(folder, weights)
    assert refusal(folder) == (
        f"{file} has a tensor lm_head.weight, for which config.json has no place; the two belong "
        f"to different models, or the architecture is not GPT-2")


def test_several_files(hf, tmp_path):
    module = make(hf)
    module.save_pretrained(tmp_path, max_shard_size=4000)
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for path in (tmp_path, index):
        check(load_network(path).network, module)
    first = min(tmp_path.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    assert refusal(tmp_path).startswith(f"{first} is truncated or not a safetensors file (")
    first.unlink()
    assert refusal(tmp_path).startswith(f"cannot read {first}: No such file or directory")
    for text in ("{", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}'):
        index.write_text(text)
        assert refusal(tmp_path) == (f"{index} does not say in its weight_map which file holds "
                                     f"which tensor; save the model again")


@pytest.mark.parametrize(("changes", "message"), [
    (dict(add_cross_attention=True),
     "a GPT-2 that reads an encoder (add_cross_attention) is not supported"),
    (dict(n_head=3), "n_embd must be a multiple of n_head, not 16 for 3 heads"),
    (dict(n_layer=None), "n_layer must be a positive integer, but is missing"),
    (dict(scale_attn_weights=1), "scale_attn_weights must be true or false, not 1"),
    (dict(activation_function=["relu"]),
     "the activation function ['relu'] is not supported; activation_function must be one of "
     "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, swish, tanh, sigmoid"),
    (dict(quantization_config={"bits": 4}),
     "the checkpoint is already quantized (quantization_config); use the float one that it was "
     "made from"),
    (dict(eos_token_id=[]), "eos_token_id must be one of 0 to 49, not []"),
])
def test_description(folder, changes, message):
    file = describe(folder, **changes)
    assert refusal(folder) == f"{file}: {message}"


def test_shapes_missing_and_unexpected_tensors(folder):
    file = folder / "model.safetensors"
    describe(folder, n_inner=24)
    assert refusal(folder) == (
        f"{file}: tensor transformer.h.0.mlp.c_fc.weight has the shape [16, 64], but config.json "
        f"demands [16, 24]")
    describe(folder, n_inner=64, n_layer=10**9)
    assert refusal(folder) == (
        f"{file} has no tensor transformer.h.2.ln_1.weight, which config.json demands; the two "
        f"belong to different models")
    describe(folder, n_layer=1)
    assert refusal(folder) == (
        f"{file} has a tensor transformer.h.1.attn.c_attn.bias, for which config.json has no "
        f"place; the two belong to different models, or the architecture is not GPT-2")


def test_values_and_truncation(folder):
    weights, name = tensors(folder), "transformer.h.1.attn.c_attn.weight"
    weights[name][3, 3] = -math.inf
    file = put(folder, weights)
    assert refusal(folder) == (f"{file}: tensor {name} holds an infinity; the checkpoint is "
                               f"damaged or its training diverged")
    file.write_bytes(file.read_bytes()[:-1])
    assert refusal(folder).startswith(f"{file} is truncated or not a safetensors file (")
