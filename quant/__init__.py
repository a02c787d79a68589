"""From a torch model to an integer graph: capture, calibration, quantization, export.

    import systolith.quant as sq
    qmodel = sq.quantize(model, calibration_batches, sq.Recipe(budget="cosine=0.999"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "systolith.quant":
    raise ImportError(
        "this folder is the package 'systolith.quant': install the project (pip install -e .) "
        "and import it by that name"
    )

if TYPE_CHECKING:
    from systolith.quant.budget import Budget
    from systolith.quant.capture import capture
    from systolith.quant.capture_values import CaptureError
    from systolith.quant.posttraining import QuantizedModel, quantize, quantize_network
    from systolith.quant.recipe import Recipe

_HOME = {
    "Budget": "budget",
    "CaptureError": "capture_values",
    "QuantizedModel": "posttraining",
    "Recipe": "recipe",
    "capture": "capture",
    "quantize": "posttraining",
    "quantize_network": "posttraining",
}


def __getattr__(name: str) -> Any:
    """The public names, looked up when they are used: torch takes seconds to import."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


__all__ = ["Budget", "CaptureError", "QuantizedModel", "Recipe", "capture", "quantize",
           "quantize_network"]
