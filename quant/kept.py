"""Quantized models that took long to make are kept, and found again by what they were made from."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path

from systolith.artifact import Artifact
from systolith.cache import cache_directory
from systolith.quant.checkpoint import files_of
from systolith.quant.export import quantize_checkpoint
from systolith.quant.posttraining import Progress, silent

WORTH_S = 10.0
"""Seconds of quantizing from which on a model is kept."""
_PACKAGES = ("torch", "numpy", "tokenizers")


def quantize_or_find(
    model: str | Path, tokenizer: str | Path | None = None, *, progress: Progress = silent
) -> Artifact:
    """Quantizes a checkpoint with the default recipe, or takes what was kept of the last time.

    An .onnx file is quantized each time. The name of the kept file is a hash of the checkpoint's
    files, of this package's sources and of the libraries' versions: nothing that could change the
    result is left out.
    """
    if Path(model).suffix == ".onnx":  # which may lie in several files
        return quantize_checkpoint(model, tokenizer, progress=progress).artifact()
    path = cache_directory() / "models" / f"{Path(model).stem}-{_key(model, tokenizer)}.slq"
    if path.exists():
        progress(f"quantized before: {path}", 0.0)
        return Artifact.load(path)
    started = time.monotonic()
    made = quantize_checkpoint(model, tokenizer, progress=progress).artifact()
    seconds = time.monotonic() - started
    if seconds >= WORTH_S:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        progress(f"quantizing took {seconds:.0f} s; kept for the next time: {path}", 1.0)
    return made


def _key(model: str | Path, tokenizer: str | Path | None) -> str:
    digest = hashlib.sha256()
    versions = {name: _version(name) for name in _PACKAGES}
    digest.update(json.dumps([Path(model).name, versions], sort_keys=True).encode())
    for path in (*files_of(model, tokenizer), *_sources()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([path.name, content]).encode())
    return digest.hexdigest()[:20]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sources() -> Iterator[Path]:
    """Whatever quantization reads of this package: core, but for the command line, and quant."""
    import systolith
    import systolith.quant

    for package in (systolith, systolith.quant):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix in (".py", ".txt") and not path.name.startswith("cli"):
                    yield path
