"""The sentences are as many and as different as they claim to be."""

import re

import numpy as np

from systolith.quant.checkpoint import load_network
from systolith.quant.sentences import calibration_sentences, evaluation_sentences, tokenized


def test_two_sets_without_a_common_sentence():
    calibration, evaluation = calibration_sentences(), evaluation_sentences()
    assert (len(calibration), len(evaluation)) == (256, 240)
    together = [" ".join(re.findall(r"\w+", s.lower())) for s in calibration + evaluation]
    assert len(set(together)) == 496
    for sentences in (calibration, evaluation):
        words = [len(s.split()) for s in sentences]
        assert min(words) <= 2 and 45 <= max(words) <= 65
        assert all(s == s.strip() and s for s in sentences)
        assert sum(s.endswith("?") for s in sentences) >= len(sentences) // 10


def test_as_tokens():
    loaded = load_network("bundled")
    tokens = tokenized(loaded.tokenizer, calibration_sentences(), 20)
    assert len(tokens) == 256 and {t.dtype for t in tokens} == {np.dtype(np.int64)}
    assert max(map(len, tokens)) == 20 and all(t[0] == loaded.bos for t in tokens)
