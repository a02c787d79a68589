"""Where tests find the public model that the repository does not contain.

`stories260K.bin` and `tok512.bin` (github.com/karpathy/llama2.c) are looked for in the folder that
the environment variable SYSTOLITH_MODELS names or, where it is unset, in a folder `shared/models`
beside the checkout. A test that needs them is skipped, by name, where they are absent.
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def model_file(name: str) -> Path:
    """The path of a model file; skips the running test where there is none."""
    folder = os.environ.get("SYSTOLITH_MODELS")
    path = Path(folder) if folder else ROOT.parent / "shared" / "models"
    if not (path / name).is_file():
        pytest.skip(f"{name} is not in {path}: set SYSTOLITH_MODELS to the folder that has it")
    return path / name
