import math

import numpy as np
import pytest
from safetensors.torch import save_file

from systolith.artifact import Artifact
from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.quant import export
from systolith.quant.calibration_data import SEQUENCES, batches_for, padded, sampled_text
from systolith.quant.checkpoint import BUNDLED, Loaded, load_model, load_network
from systolith.quant.evaluate import float_logits, perplexity, sample
from systolith.quant.export import network_hash, quantize_checkpoint
from systolith.quant.llama_network import llama_network
from systolith.quant.posttraining import QuantizedModel
from systolith.quant.recipe import Recipe
from systolith.quant.tokenizer import BOS, Tokenizer
from tests.quant.small import CONTEXT, VOCABULARY, small_llama

# The bundled model's checkpoint is small: a few seconds for calibration on little text.
TEXT = "The import statement combines two operations; it searches for the named module.\n" * 4


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("calibration") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def made(text) -> QuantizedModel:
    return quantize_checkpoint("bundled", calibration=text)


def test_an_artifact_is_a_whole_model(made, tmp_path):
    made.save(tmp_path / "model.slq")
    loaded = Artifact.load(tmp_path / "model.slq")
    model, tokenizer = load_model("bundled")
    mine = Tokenizer.from_bytes(loaded.tokenizer, "model.slq", loaded.graph.vocabulary)
    assert mine.pieces == tokenizer.pieces and mine.scores == tokenizer.scores
    prompt = mine.encode("The import statement")
    new = IntegerModel(loaded.graph).generate(prompt, 12)
    floats = list(prompt)
    while len(floats) < len(prompt) + 3:
        floats.append(int(float_logits(model)(np.array(floats))[-1].argmax()))
    assert new[:3] == floats[-3:], mine.decode(prompt + new)


def test_metadata_names_the_source(made):
    loaded = load_network("bundled")
    facts = made.artifact().metadata
    assert facts["source_sha256"] == network_hash(loaded.network)
    assert facts["checkpoint"] == "bundled"
    assert facts["calibration"] == "text.txt"
    tokens = len(loaded.tokenizer.encode(TEXT, bos=False))
    assert facts["calibration_tokens"] == tokens + math.ceil(tokens / 255)
    assert facts["recipe"]["headroom"] == Recipe().headroom


def test_quantization_is_reproducible(made, text, tmp_path):
    made.save(tmp_path / "one.slq")
    quantize_checkpoint("bundled", calibration=text).save(tmp_path / "two.slq")
    assert (tmp_path / "one.slq").read_bytes() == (tmp_path / "two.slq").read_bytes()


def test_a_checkpoint_file_and_a_recipe(text, tmp_path):
    model, tokenizer = load_model("bundled")
    (tmp_path / "config.json").write_bytes((BUNDLED / "config.json").read_bytes())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    steps: list[tuple[str, float]] = []
    made = quantize_checkpoint(tmp_path / "model.safetensors", tokenizer, calibration=text,
                               recipe=Recipe(context=32, bits=(("*", 8),)),
                               progress=lambda step, part: steps.append((step, part)))
    assert [step for step, _ in steps] == ["loading", "preparing", "calibrating", "building"]
    parts = [part for _, part in steps]
    assert parts == sorted(parts) and parts[-1] < 1
    assert made.metadata["checkpoint"] == "model.safetensors"
    assert made.graph.context == 32
    assert made.graph.tensors["norm"].bits == 8


def test_the_hash_depends_on_the_weights(seed):
    hashes = {network_hash(llama_network(small_llama(s))) for s in (seed, seed + 1, seed)}
    assert len(hashes) == 2


def test_sampled_text_is_the_models_own(monkeypatch, seed):
    model = small_llama(seed)
    first, again = sampled_text(model), sampled_text(model)
    np.testing.assert_array_equal(first, again)
    assert np.shape(first) == (SEQUENCES, CONTEXT)
    assert all(tokens[0] == BOS for tokens in first)
    assert len({tuple(tokens) for tokens in first}) == SEQUENCES
    # As likely as what evaluate.sample draws, and far likelier than random tokens.
    drawn = np.array([sample(model, CONTEXT, s) for s in range(100, 108)])
    random = np.random.default_rng(seed).integers(0, VOCABULARY, drawn.shape)
    own, others, chance = (perplexity(float_logits(model), np.array(t))
                           for t in (first, drawn, random))
    assert abs(math.log(own / others)) < 0.25 * math.log(chance / others)


def test_given_text_is_cut_into_sequences(tmp_path):
    loaded, file = load_network("bundled"), tmp_path / "text.txt"
    file.write_text(TEXT * 10)
    batches, source = batches_for(loaded, file)
    parts = [batch["tokens"][0] for batch in batches]
    assert source == "text.txt"
    assert all(len(part) == 256 for part in parts[:-1]) and 1 < len(parts[-1]) <= 256
    assert all(part[0] == BOS for part in parts)
    joined = [token for part in parts for token in part[1:].tolist()]
    assert joined == loaded.tokenizer.encode(TEXT * 10, bos=False)


def test_tokens_may_be_given(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(12, dtype=np.int32).reshape(3, 4))
    batches, _ = batches_for(load_network("bundled"), tmp_path / "tokens.npy")
    assert [b["tokens"].tolist() for b in batches] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]],
                                                      [[8, 9, 10, 11]]]


@pytest.mark.parametrize("name, content, message", [
    ("none.txt", None, "Cannot read .*none.txt: No such file"),
    ("empty.txt", b" \n", "calibration text .*empty.txt is empty"),
    ("binary.txt", b"\xff\xfe\xff", "binary.txt is neither text nor a .npy file"),
    ("bad.npy", b"\x93NUMPY", "bad.npy is neither text nor a .npy file"),
    ("flat.npy", np.arange(3), r"flat.npy must hold integers of the shape \[N, T\], not int64"),
    ("float.npy", np.ones((2, 2)), "must hold integers of the shape .*, not float64"),
    ("wild.npy", np.full((2, 2), 10**6), "'tokens' must be 0 to 511, not 1000000"),
])
def test_calibration_that_cannot_be_used(name, content, message, tmp_path):
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        quantize_checkpoint("bundled", calibration=tmp_path / name)


def test_a_model_that_nothing_can_be_sampled_from_asks_for_text(seed):
    network = llama_network(small_llama(seed))
    loaded = Loaded(network=network, tokenizer=None, family="gpt2", name="mine")
    with pytest.raises(UserError, match="mine needs text to be calibrated on: name a file"):
        batches_for(loaded)


def test_sentences_share_batches():
    rows = [np.arange(1, n + 1) for n in (3, 1, 2)] + [np.full(9, 5)] * 16
    batches = padded(rows)
    assert [batch["tokens"].shape for batch in batches] == [(16, 9), (3, 9)]
    assert batches[0]["tokens"][0].tolist() == [1] + [0] * 8
    assert batches[0]["attention_mask"].sum(axis=1).tolist() == [1, 2, 3] + [9] * 13


def test_threads_are_restored(monkeypatch):
    import torch

    before = torch.get_num_threads()
    with export._few_threads(llama_network(small_llama(1))):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
