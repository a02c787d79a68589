"""`capture` against Hugging Face's own modules: small random BERT, GPT-2 and Llama."""

import pytest
import torch
from torch import nn

from systolith.quant.capture import capture
from systolith.quant.network import Attention, Network, Norm, Output, Rope
from tests.quant.foreign import CONTEXT, VOCABULARY, batch, close, randomized

IMPLEMENTATIONS = ("eager", "sdpa")


def check_language_model(network: Network, module: nn.Module) -> None:
    assert network.generative and network.vocabulary == VOCABULARY and network.context == CONTEXT
    for longest in (2, 7, CONTEXT):
        lengths = torch.tensor([longest, 1, max(longest // 2, 1)])
        ids, mask = batch(lengths)
        (ours,) = network.results(network.run({"tokens": ids}, lengths), lengths)
        theirs = module(input_ids=ids, attention_mask=mask).logits
        close(ours[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_bert(hf, implementation: str, seed: int) -> None:
    module = randomized(hf.BertModel(hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=CONTEXT,
        attn_implementation=implementation)), seed)
    ids, mask = batch(torch.tensor([5, 3]))
    network = capture(module, {"input_ids": ids, "attention_mask": mask})
    assert network.indices == ("tokens",) and network.context == CONTEXT
    assert network.outputs == (Output(x="encoder.layer.1.output.LayerNorm"),
                               Output(x="pooler.activation", pool="first"))
    assert not any(a.causal for a in network.of_kind(Attention))
    for lengths in (torch.tensor([CONTEXT, 4, 1]), torch.tensor([2, 2, 1])):
        ids, mask = batch(lengths)
        hidden, pooled = network.results(network.run({"tokens": ids}, lengths), lengths)
        theirs = module(input_ids=ids, attention_mask=mask)
        close(hidden[mask.bool()], theirs.last_hidden_state[mask.bool()])
        close(pooled, theirs.pooler_output)


def test_bert_with_segments(hf) -> None:
    module = randomized(hf.BertModel(hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=CONTEXT)), 0)
    ids, mask = batch(torch.tensor([6, 6]))
    segments = torch.randint(2, ids.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    network = capture(module, inputs, context=12)
    assert network.indices == ("tokens", "token_type_ids") and network.context == 12
    hidden, pooled = network.results(network.run({"tokens": ids, "token_type_ids": segments}))
    theirs = module(**inputs)
    close(hidden, theirs.last_hidden_state)
    close(pooled, theirs.pooler_output)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gpt2(hf, implementation: str) -> None:
    module = randomized(hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=CONTEXT,
        bos_token_id=1, eos_token_id=1, attn_implementation=implementation)), 0)
    ids, mask = batch(torch.tensor([5, 5]))
    network = capture(module, {"input_ids": ids, "attention_mask": mask})
    check_language_model(network, module)
    names = [op.name for op in network.ops]
    assert "transformer.h.1.attn.c_attn.k" in names and "lm_head" in names
    assert [op.function for op in network.ops if hasattr(op, "function")] == ["gelu_tanh"] * 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_llama(hf, implementation: str, seed: int) -> None:
    module = randomized(hf.LlamaForCausalLM(hf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=CONTEXT,
        attn_implementation=implementation)), seed)
    ids, _ = batch(torch.tensor([5, 5]))
    network = capture(module, (ids,))
    check_language_model(network, module)
    assert {(op.pairs, op.head_dim) for op in network.of_kind(Rope)} == {("halves", 4)}
    assert len(list(network.of_kind(Norm))) == 5
    assert [op.name for op in network.of_kind(Norm)][:2] == [
        "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
