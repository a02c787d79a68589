"""all-MiniLM-L6-v2, a sentence model that people use, against `transformers` on the same files."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from systolith.quant.checkpoint import MINILM, load_network
from systolith.quant.network import Output
from systolith.quant.vocabulary import load_tokenizer

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The compiler allocates 64 kB of scratchpad for the weights of the first layer.",
    "Où est la gare, s'il vous plaît?",
    "ok",
    "word " * 300,
]


@pytest.fixture(scope="module")
def loaded(minilm):
    return load_network(minilm)


def test_description(loaded):
    network = loaded.network
    assert (loaded.family, loaded.name, loaded.bos, loaded.eos) == ("bert", "minilm", 101, 102)
    assert network.vocabulary == 30522 and network.context == 256
    assert network.outputs == (
        Output(x="encoder.layer.5.output.LayerNorm", pool="mean", normalize=True),)


@pytest.mark.parametrize("text", [*SENTENCES, "naïve café 東京 🙂 [MASK] x", "e-mail@x.org, 3.14!"])
def test_the_two_forms_of_its_vocabulary(loaded, text):
    words = load_tokenizer(Path(importlib.util.find_spec(MINILM).origin).parent / "model/vocab.txt")
    assert words.encode(text) == loaded.tokenizer.encode(text)


def test_embeddings_are_those_of_transformers(hf, loaded):
    folder = Path(importlib.util.find_spec(MINILM).origin).parent / "model"
    theirs = hf.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = hf.BertTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256,
                       return_tensors="pt")
    mask = inputs["attention_mask"]
    tokens = [loaded.encode(text) for text in SENTENCES]
    lengths = torch.tensor([len(t) for t in tokens])
    assert lengths.tolist() == mask.sum(1).tolist()
    ids = torch.zeros_like(inputs["input_ids"])
    for row, t in zip(ids, tokens, strict=True):
        row[:len(t)] = torch.tensor(t)
    assert torch.equal(ids, inputs["input_ids"])
    (ours,) = loaded.network.results(loaded.network.run({"tokens": ids}, lengths), lengths)
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    vectors = F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert (ours - vectors).abs().max() <= 1e-4 * vectors.abs().max()
    assert ours[0] @ ours[1] > 0.6 > 0.2 > ours[0] @ ours[2]  # what the model is for
