"""The parts of the training script: the split, the vocabulary and the windows."""

import hashlib
import json
import platform
from pydoc_data.topics import topics

import numpy as np
import pytest

from systolith.quant import train_bundled
from systolith.quant.checkpoint import BUNDLED
from systolith.quant.tokenizer import BOS, SPECIAL, Tokenizer


def test_nothing_held_out_is_learned():
    learned, held = train_bundled.split_topics()

    def keys(documents):
        return [" ".join(p.split()) for document in documents for p in document]

    assert not set(keys(learned)) & set(keys(held))
    assert len(keys(learned)) == len(set(keys(learned)))
    assert sum(map(len, keys(learned))) > 8 * sum(map(len, keys(held))) > 100_000


def test_a_vocabulary_merges_the_most_frequent_pair_first():
    text = "xy xy xy xyz \n" * 30 + "aaaa" * 25
    tokenizer = train_bundled.train_vocabulary(text, SPECIAL + 11)
    pieces = [p.decode() for p in tokenizer.pieces[SPECIAL:]]
    assert pieces[:5] == ["xy", " xy", "aa", " xyz", "aaaa"]
    assert sorted(pieces[5:]) == ["\n", " ", "a", "x", "y", "z"]
    assert tokenizer.merge("aaaaa xyz\n") == [SPECIAL + i for i in (4, 7, 3, 5)]


def test_the_bundled_vocabulary_and_windows_are_reproducible():
    readme = (BUNDLED / "README.md").read_text()
    sha = hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()
    if sha not in readme:
        pytest.skip(f"pydoc_data.topics of Python {platform.python_version()} is another text "
                    f"than the one that the bundled model learned")
    learned, held = train_bundled.split_topics()
    text = "".join("\n\n" + p for document in learned for p in document)
    trained = train_bundled.train_vocabulary(text, 512)
    bundled = Tokenizer.load(BUNDLED / "tokenizer.bin")
    assert trained.pieces == bundled.pieces
    assert trained.scores == bundled.scores
    np.testing.assert_array_equal(train_bundled.held_out_windows(held, trained),
                                  np.load(BUNDLED / "held_out.npy"))


def test_windows_begin_with_bos_and_hide_what_it_cannot_predict():
    tokenizer = Tokenizer.load(BUNDLED / "tokenizer.bin")
    documents = [[f"Paragraph {i} of the text.", f"   indented {i}"] for i in range(40)]
    corpus = train_bundled.Corpus(documents, tokenizer)
    text = "".join("\n\n" + p for document in documents for p in document)
    assert tokenizer.decode(corpus.stream) == text
    assert corpus.bytes == len(text)
    assert len(corpus.starts) == 40
    rng = np.random.default_rng(1)
    hidden = 0
    for _ in range(50):
        x, y = corpus.batch(rng, 1, 30)
        assert x.shape == y.shape == (1, 30)
        assert x[0, 0] == BOS
        assert (x[0, 2:] == y[0, 1:-1]).all()
        written = tokenizer.decode(x[0].tolist())
        if y[0, 0] == -100:
            hidden += 1
        else:
            assert written.startswith("Paragraph "), written
            assert y[0, 0] == x[0, 1]
        assert written.lstrip(" ") in text, written
    assert 10 < hidden < 40
