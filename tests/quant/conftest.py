"""Settings for every test of the quantizer."""

import os
import warnings

import pytest
import torch

# The models here are tiny: a second thread costs more in waiting than it gives, above all on a
# machine that is busy with simulations.
torch.set_num_threads(1)


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
