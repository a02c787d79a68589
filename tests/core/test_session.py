"""Sessions: called like the torch module, the same bits on all backends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import systolith
import systolith.quant as sq
from systolith.artifact import Artifact
from systolith.errors import UserError
from systolith.sampling import Sampler
from systolith.sim.generate import Mismatch
from tests.compiler.test_decoder import random_graph

BACKENDS = ("golden", "machine", "rtl")


class Encoder(nn.Module):
    """Tokens and real features to one vector a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)

    def forward(self, words, features, src_key_padding_mask=None):
        x = self.embedding(words) + features
        return self.layer(x, src_key_padding_mask=src_key_padding_mask)


def padding(lengths, longest):
    return torch.arange(longest) >= torch.tensor(lengths)[:, None]


@pytest.fixture(scope="module")
def qmodel():
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    model = Encoder().eval()
    batches = [
        {
            "words": torch.from_numpy(rng.integers(0, 30, (4, 12))),
            "features": torch.from_numpy(rng.normal(size=(4, 12, 16)).astype(np.float32)),
            "src_key_padding_mask": padding([12, 9, 5, 7], 12),
        }
        for _ in range(3)
    ]
    return sq.quantize(model, batches)


def call(seed, lengths=(9, 3)):
    rng = np.random.default_rng(seed)
    longest = max(lengths)
    words = torch.from_numpy(rng.integers(0, 30, (len(lengths), longest)))
    features = torch.from_numpy(rng.normal(size=(*words.shape, 16)))
    return words, features, padding(lengths, longest)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_is_called_like_the_module(qmodel, backend, seed):
    words, features, mask = call(seed)
    expected = qmodel.as_torch()(words, features, mask)
    session = systolith.Session(qmodel, "tiny", backend)
    for made in (
        session(words, features, src_key_padding_mask=mask),
        session(words=words, features=features, src_key_padding_mask=mask),
    ):
        assert isinstance(made, torch.Tensor) and made.dtype == torch.float64
        assert torch.equal(made[~mask], expected[~mask])
    arrays = session(words.numpy(), features.numpy(), mask.numpy())
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_array_equal(arrays, made.numpy())
    assert (session.counters.get("CYCLES", 0) > 0) == (backend == "rtl")


def test_programs_are_kept_for_few_lengths(qmodel, seed):
    session = systolith.Session(qmodel, "tiny", "machine")
    for lengths in ((1, 4), (3,), (5, 8), (9,), (12,)):
        session(*call(seed, lengths))
    assert sorted(session._sequences) == [4, 8, 12]


def test_a_model_file_and_pooled_sentences(tmp_path, seed):
    """Without the module's signature, by the graph's names; results are the module's floats."""
    from systolith.graph import Output
    from tests.graphs import encoder  # its mean is taken by the host

    graph = encoder(seed)
    kept = [node for node in graph.nodes if type(node).__name__ not in ("Slice", "Concat")]
    graph = type(graph)(
        nodes=tuple(kept),
        tensors={n: x for n, x in graph.tensors.items() if n not in ("part", "both")},
        constants=graph.constants,
        outputs=(Output(tensor="context", pool="mean", normalize=True), Output(tensor="context")),
        context=graph.context,
    )  # fmt: skip
    Artifact(graph, b"").save(tmp_path / "m.slq")
    session = systolith.Session(tmp_path / "m.slq", "tiny", "machine")
    from systolith.quant.torch_model import IntegerModule

    rng = np.random.default_rng(seed)
    inputs = {
        "tokens": torch.from_numpy(rng.integers(0, 11, (2, 7))),
        "types": torch.from_numpy(rng.integers(0, 2, (2, 7))),
        "given": torch.from_numpy(rng.normal(size=(2, 7, 8)) * 4000),
        "attention_mask": (~padding([7, 4], 7)).long(),
    }
    pooled, tokens = session(**inputs)
    expected, whole = IntegerModule(graph)(**inputs)
    assert torch.equal(pooled, expected)
    assert torch.equal(tokens[1, :4], whole[1, :4])


@pytest.fixture
def language(seed):
    return Artifact(replace(random_graph(seed), bos=None, eos=None), b"")


def test_logits_of_every_token(language, seed):
    tokens = np.random.default_rng(seed).integers(0, 37, (2, 9))
    logits = [systolith.Session(language, "tiny", b)(tokens) for b in ("golden", "machine")]
    assert logits[0].shape == (2, 9, 37)
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_come_one_by_one(language, backend, seed):
    session = systolith.Session(language, "tiny", backend)
    sampler = Sampler(40.0, seed=seed)
    tokens = list(session.generate([5, 6, 7], 5, sampler=sampler))
    assert tokens == session.generation.tokens[3:] and len(tokens) == 5
    golden = systolith.Session(language, "tiny")
    assert list(golden.generate([5, 6, 7], 5, sampler=sampler)) == tokens
    if backend != "golden":
        return
    both = list(session.generate([[5, 6, 7], [8]], 3, sampler=sampler))
    assert [index for index, _ in both] == [0, 0, 0, 1, 1, 1]
    assert [token for _, token in both][:3] == tokens[:3]
    stopped = list(session.generate([5, 6, 7], 5, sampler=sampler, stop=[tokens[2]]))
    assert stopped == tokens[: tokens.index(tokens[2]) + 1]


def test_the_models_own_tokens_end_a_text(language, seed):
    sampler = Sampler(40.0, seed=seed)
    free = list(systolith.Session(language, "tiny").generate([5, 6, 7], 8, sampler=sampler))
    ended = Artifact(replace(language.graph, bos=None, eos=free[4]), b"")
    session = systolith.Session(ended, "tiny", "machine")
    assert list(session.generate([5, 6, 7], 8, sampler=sampler)) == free[: free.index(free[4]) + 1]
    assert session.generation.end == "stop"


@pytest.mark.parametrize("backend", BACKENDS)
def test_whoever_has_read_enough_may_leave(language, backend, seed):
    session = systolith.Session(language, "tiny", backend)
    stream = session.generate([5, 6], 25, sampler=Sampler(40.0))
    first = next(stream)
    stream.close()
    assert session.generation is None
    assert next(session.generate([5, 6], 1, sampler=Sampler(40.0))) == first


def test_an_error_of_the_writing_thread_arrives(language, monkeypatch):
    from systolith.sim import generate

    session = systolith.Session(language, "tiny", "machine")

    def wrong(*_):
        raise Mismatch("one bit")

    monkeypatch.setattr(generate, "compare", wrong)
    with pytest.raises(Mismatch, match="one bit"):
        list(session.generate([5, 6], 3))


def test_text_with_the_bundled_model():
    from systolith.quant.export import quantize_checkpoint

    session = systolith.Session(quantize_checkpoint("bundled"))
    pieces = list(session.generate("If the expression", 12))
    assert len(pieces) > 8 and all(isinstance(piece, str) for piece in pieces)
    assert "".join(pieces).startswith(" is")
    stopped = "".join(session.generate("If the expression", 12, stop=["is"]))
    assert stopped.rstrip().endswith("is") and "".join(pieces).startswith(stopped)
    two = list(session.generate(["If", "The"], 2))
    assert [index for index, _ in two] == [0, 0, 0, 1, 1, 1]  # the last piece is what is left over


def test_a_wrong_bit_is_found(qmodel, seed, monkeypatch):
    from systolith.sim import execute

    session = systolith.Session(qmodel, "tiny", "machine")
    right = execute.run_sequences

    def wrong(*arguments, **named):
        runs = right(*arguments, **named)
        next(iter(runs[-1].outputs.values()))[2, 3] += 1
        return runs

    monkeypatch.setattr(execute, "run_sequences", wrong)
    with pytest.raises(Mismatch, match=r"Sequence 0, .*: channel 3 of token 2 is .*\(1 values"):
        session(*call(seed, (5,)))


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda q: systolith.Session(q, backend="gpu"), "The backend must be one of golden"),
        (lambda q: systolith.Session("nowhere.slq"), "There is no quantized model nowhere.slq"),
        (lambda q: systolith.Session(q, "huge"), "No configuration 'huge'"),
        (lambda q: systolith.Session(q)(torch.zeros(1, 3, dtype=torch.long)), "'features' is miss"),
        (lambda q: systolith.Session(q).generate([1], 3), "The model is no language model"),
        (lambda q: systolith.Session(q).embed(["a"]), "The model has no vocabulary"),
    ],
)
def test_mistakes_get_one_sentence(qmodel, act, message):
    with pytest.raises(UserError, match=message):
        act(qmodel)


def test_mistakes_of_prompts(language):
    session = systolith.Session(language, "tiny")
    for arguments, message in (
        (([], 3), "The prompt is empty"),
        (([1], 0), "at least 1, not 0"),
        (("text", 3), "The model has no vocabulary"),
        (([1] * 33, 3), "beyond the context of 32"),
    ):
        with pytest.raises(UserError, match=message):
            list(session.generate(*arguments))
    with pytest.raises(UserError, match="must not be empty"):
        list(session.generate([1], 3, stop=[""]))


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = systolith.Sesion
