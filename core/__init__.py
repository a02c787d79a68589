"""systolith: from a torch module to RTL whose every output bit is predicted.

    import systolith
    session = systolith.Session("model.slq", backend="rtl")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "systolith":
    raise ImportError(
        "this folder is the package 'systolith': install the project (pip install -e .) "
        "and import it by that name"
    )

if TYPE_CHECKING:
    from systolith.sampling import Sampler
    from systolith.session import Session

_HOME = {"Sampler": "sampling", "Session": "session"}


def __getattr__(name: str) -> Any:
    """The public names, looked up when they are used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


__all__ = ["Sampler", "Session"]
