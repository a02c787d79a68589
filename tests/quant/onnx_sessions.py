"""onnxruntime as the tests use it."""

from pathlib import Path
from typing import Any

import pytest


def session(model: Any) -> Any:
    """A session with the default optimizations on one core, for a model or its file."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
