"""Sentences to calibrate sentence models on, and others to measure them with.

Written for this project: news, technology, science, law, everyday life, questions, stories,
notices, letters; from one word to about sixty. The two sets have no sentence in common.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from systolith.quant.vocabulary import AnyTokenizer

_FOLDER = Path(__file__).parent / "bundled"


def calibration_sentences() -> list[str]:
    """256 sentences, 3,600 words, that ranges and Hessians are measured on."""
    return _lines("sentences_calibration.txt")


def evaluation_sentences() -> list[str]:
    """240 sentences that results are reported on, and nothing is fitted to."""
    return _lines("sentences_evaluation.txt")


def tokenized(
    tokenizer: AnyTokenizer, sentences: list[str], context: int
) -> list[NDArray[np.int64]]:
    """Each sentence as tokens int64 [T] with those that begin and end it; T <= ``context``."""
    return [np.array(tokenizer.encode(text, limit=context), dtype=np.int64) for text in sentences]


def _lines(name: str) -> list[str]:
    return (_FOLDER / name).read_text(encoding="utf-8").splitlines()
