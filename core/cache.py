"""Where things are kept that take long to make: $SYSTOLITH_CACHE, else `build/` in a checkout, else
~/.cache/systolith."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The folder; created if absent."""
    chosen = os.environ.get("SYSTOLITH_CACHE")
    checkout = Path(__file__).resolve().parents[1]
    if chosen:
        path = Path(chosen).expanduser().resolve()
    elif (checkout / "pyproject.toml").exists():
        path = checkout / "build"
    else:
        path = Path.home() / ".cache" / "systolith"
    path.mkdir(parents=True, exist_ok=True)
    return path
