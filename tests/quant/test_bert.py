"""BERT folders that `transformers` wrote load to the function that it computes."""

import json
import math

import pytest
import torch

from systolith.errors import UserError
from systolith.quant.capture import capture
from systolith.quant.checkpoint import load_network
from systolith.quant.description import ACTIVATIONS
from systolith.quant.network import Attention, Output
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

LENGTHS = (torch.tensor([CONTEXT, 4, 1]), torch.tensor([2, 2, 1]))


def make(hf, seed: int = 0, **changes):
    config = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
                  num_attention_heads=4, intermediate_size=24, max_position_embeddings=CONTEXT)
    return randomized(hf.BertModel(hf.BertConfig(**config | changes)), seed)


@pytest.fixture
def folder(hf, tmp_path):
    make(hf).save_pretrained(tmp_path)
    return tmp_path


def check(network, module) -> None:
    """The last hidden state of padded batches."""
    for lengths in LENGTHS:
        ids, mask = batch(lengths)
        (ours,) = network.results(network.run({"tokens": ids}, lengths), lengths)
        theirs = module(input_ids=ids, attention_mask=mask).last_hidden_state
        close(ours[mask.bool()], theirs[mask.bool()])


def refusal(path) -> str:
    with pytest.raises(UserError) as e:
        load_network(path)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("seed", [0, 1])
def test_bert(hf, tmp_path, seed):
    module = make(hf, seed)
    module.save_pretrained(tmp_path)
    loaded = load_network(tmp_path)
    assert (loaded.family, loaded.name) == ("bert", tmp_path.name)
    assert loaded.tokenizer is None and loaded.llama is None
    assert loaded.bos is None and loaded.eos is None
    network = loaded.network
    assert network.indices == ("tokens",) and network.vocabulary == VOCABULARY
    assert network.context == CONTEXT and not network.generative
    assert network.outputs == (Output(x="encoder.layer.1.output.LayerNorm"),)
    assert not any(a.causal for a in network.of_kind(Attention))
    check(network, module)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(hf, tmp_path, activation):
    module = make(hf, hidden_act=activation, layer_norm_eps=1e-3)
    module.save_pretrained(tmp_path)
    check(load_network(tmp_path).network, module)


def test_it_is_what_would_be_captured(hf, folder):
    module = make(hf)
    ids, mask = batch(torch.tensor([5, 3]))
    captured = capture(module, {"input_ids": ids, "attention_mask": mask})
    ours = load_network(folder).network
    assert [(type(op), op.name, op.inputs) for op in ours.ops] == [
        (type(op), op.name, op.inputs) for op in captured.ops][:len(ours.ops)]


def test_with_heads_of_the_pretraining(hf, tmp_path):
    module = randomized(hf.BertForPreTraining(make(hf).config), 3)
    module.save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in tensors(tmp_path)} == {"bert", "cls"}
    check(load_network(tmp_path).network, module.bert)


def test_old_names_buffers_and_no_pooler(hf, folder):
    module = make(hf)
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                    "LayerNorm.beta"): v
           for k, v in tensors(folder).items() if not k.startswith("pooler.")}
    put(folder, old | {"embeddings.position_ids": torch.arange(CONTEXT)[None]})
    check(load_network(folder).network, module)


def test_half_precision(folder):
    half = {k: v.to(torch.bfloat16) for k, v in tensors(folder).items()}
    put(folder, half)
    (table, *_) = load_network(folder).network.ops
    assert table.table.dtype == torch.float32
    assert torch.equal(table.table, half["embeddings.word_embeddings.weight"].float())


def test_task_head(hf, tmp_path):
    hf.BertForSequenceClassification(make(hf).config).save_pretrained(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path / 'model.safetensors'} has a head for a task (classifier.bias), which is not "
        f"supported here; capture the torch module instead")


@pytest.mark.parametrize(("changes", "message"), [
    (dict(model_type="bart"), "the architecture 'bart' is not supported; model_type must be "
                              "'llama', 'bert' or 'gpt2'"),
    (dict(is_decoder=True), "a BERT that is a decoder (is_decoder) is not supported"),
    (dict(add_cross_attention=True),
     "a BERT that is a decoder (add_cross_attention) is not supported"),
    (dict(position_embedding_type="relative_key"),
     "relative positions (position_embedding_type: 'relative_key') are not supported"),
    (dict(hidden_act="quick_gelu"),
     f"the activation function 'quick_gelu' is not supported; hidden_act must be one of "
     f"{', '.join(ACTIVATIONS)}"),
    (dict(hidden_size=None), "hidden_size must be a positive integer, but is missing"),
    (dict(num_attention_heads=3),
     "hidden_size must be a multiple of num_attention_heads, not 16 for 3 heads"),
    (dict(layer_norm_eps="no"), "layer_norm_eps must be a positive number, not 'no'"),
    (dict(quantization_config={"bits": 4}),
     "the checkpoint is already quantized (quantization_config); use the float one that it was "
     "made from"),
    (dict(bos_token_id=50), "bos_token_id must be one of 0 to 49, not 50"),
])
def test_description(folder, changes, message):
    file = describe(folder, **changes)
    assert refusal(folder) == f"{file}: {message}"


def test_shapes_disagree(folder):
    describe(folder, intermediate_size=1 << 40)
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'}: tensor encoder.layer.0.intermediate.dense.weight has the "
        f"shape [24, 16], but config.json demands [1099511627776, 16]")


def test_missing_and_unexpected_tensors(folder):
    file = folder / "model.safetensors"
    describe(folder, num_hidden_layers=10**9)
    assert refusal(folder) == (
        f"{file} has no tensor encoder.layer.2.attention.self.query.weight, which config.json "
        f"demands; the two belong to different models")
    describe(folder, num_hidden_layers=1)
    assert refusal(folder) == (
        f"{file} has a tensor encoder.layer.1.attention.output.LayerNorm.bias, for which "
        f"config.json has no place; the two belong to different models, or the architecture is "
        f"not BERT")


def test_values(folder):
    weights, name = tensors(folder), "encoder.layer.1.output.dense.bias"
    weights[name][3] = math.nan
    file = put(folder, weights)
    assert refusal(folder) == (f"{file}: tensor {name} holds a NaN; the checkpoint is damaged or "
                               f"its training diverged")
    weights[name] = torch.zeros(16, dtype=torch.int8)
    put(folder, weights)
    assert refusal(folder) == (
        f"{file}: tensor {name} holds torch.int8, but must hold float32, float16 or bfloat16; load "
        f"the checkpoint before its quantization")


def test_truncated(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for data in (whole[:-1], whole[:100], b""):
        file.write_bytes(data)
        message = refusal(folder)
        assert message.startswith(f"{file} is truncated or not a safetensors file ("), message
        assert message.endswith("; copy it again")


# sentence-transformers ------------------------------------------------------------------------

KINDS = ("Transformer", "Pooling", "Normalize")


def sentence_folder(folder, mode: str, kinds=KINDS, limit: int | None = None) -> None:
    paths = ("", "1_Pooling", "2_Normalize")
    (folder / "modules.json").write_text(json.dumps(
        [{"idx": i, "type": f"sentence_transformers.models.{kind}", "path": path}
         for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))]))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(
        {"word_embedding_dimension": 16} | {f"pooling_mode_{m}": m == mode for m in modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))


@pytest.mark.parametrize(("mode", "pool"), [("mean_tokens", "mean"), ("cls_token", "first"),
                                            ("lasttoken", "last")])
def test_pooling(hf, folder, mode, pool):
    sentence_folder(folder, mode)
    network = load_network(folder).network
    assert network.outputs == (
        Output(x="encoder.layer.1.output.LayerNorm", pool=pool, normalize=True),)
    lengths = LENGTHS[0]
    ids, mask = batch(lengths)
    (ours,) = network.results(network.run({"tokens": ids}, lengths), lengths)
    hidden = make(hf)(input_ids=ids, attention_mask=mask).last_hidden_state
    vectors = {"first": hidden[:, 0], "last": hidden[torch.arange(3), lengths - 1],
               "mean": (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)}[pool]
    close(ours, vectors / vectors.norm(dim=-1, keepdim=True))


def test_pooling_without_normalisation_or_at_all(folder):
    sentence_folder(folder, "mean_tokens", KINDS[:2], limit=9)
    network = load_network(folder).network
    assert network.outputs[0].pool == "mean" and not network.outputs[0].normalize
    assert network.context == 9 and len(network.op("embeddings.positions").table) == 9
    sentence_folder(folder, "mean_tokens", KINDS[:1], limit=900)
    network = load_network(folder).network
    assert network.outputs[0].pool == "none" and network.context == CONTEXT


def test_pooling_that_is_not_supported(folder):
    sentence_folder(folder, "max_tokens")
    config = folder / "1_Pooling" / "config.json"
    supported = "it must be one of cls_token, mean_tokens, lasttoken"
    assert refusal(folder) == f"{config}: the pooling max_tokens is not supported; {supported}"
    sentence_folder(folder, "nothing")
    assert refusal(folder) == f"{config}: the pooling of no mode is not supported; {supported}"
    sentence_folder(folder, "mean_tokens", ("Transformer", "Pooling", "Dense"))
    modules = folder / "modules.json"
    assert refusal(folder) == (
        f"{modules}: the modules Transformer, Pooling, Dense are not supported; they must be "
        f"Transformer, Pooling and perhaps Normalize")
    modules.write_text('[{"type": "x.Transformer", "path": "0_Transformer"}]')
    assert refusal(folder) == (
        f"{modules}: the transformer must lie in the folder itself, not in 0_Transformer; give "
        f"that folder")
    modules.write_text("{}x")
    assert refusal(folder) == f"{modules} must list modules, each with a type and a path"
