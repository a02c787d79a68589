"""A sentence-transformers folder: what its files say of pooling, beside the checkpoint.

`modules.json` lists what is applied one after the other: the transformer, then how the vectors of
its tokens become one, then perhaps a normalisation to length 1.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from systolith.errors import CheckpointError
from systolith.quant.description import Description

POOLS = {"cls_token": "first", "mean_tokens": "mean", "lasttoken": "last"}
"""What follows "pooling_mode_" in 1_Pooling/config.json, and `network.Output.pool`."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """``pool`` and ``normalize`` as in `network.Output`; ``context``: longest sentence in tokens.

    ``context`` is None where only the model limits it.
    """

    pool: str = "none"
    normalize: bool = False
    context: int | None = None


def read_pooling(folder: Path) -> Pooling:
    """The pooling of a folder; without modules.json there is none: the tokens' own vectors.

    A module or a way of pooling that no `Output` has raises CheckpointError.
    """
    path = folder / "modules.json"
    if not path.exists():
        return Pooling()
    try:
        modules = [(str(m["type"]).rpartition(".")[2], str(m["path"]))
                   for m in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} must list modules, each with a type and a path") from e
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer"], ["Transformer", "Pooling"],
                     ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(f"{path}: the modules {', '.join(kinds)} are not supported; they "
                              f"must be Transformer, Pooling and perhaps Normalize")
    if modules[0][1] not in ("", "."):
        raise CheckpointError(f"{path}: the transformer must lie in the folder itself, not in "
                              f"{modules[0][1]}; give that folder")
    return Pooling(
        pool=_pool(folder / modules[1][1] / "config.json") if len(modules) > 1 else "none",
        normalize="Normalize" in kinds, context=_limit(folder / "sentence_bert_config.json"))


def _pool(path: Path) -> str:
    d = Description.load(path)
    modes = [key.removeprefix("pooling_mode_") for key, value in d.raw.items()
             if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in POOLS:
        raise d.error(f"the pooling {' + '.join(modes) or 'of no mode'} is not supported; it must "
                      f"be one of {', '.join(POOLS)}")
    return POOLS[modes[0]]


def _limit(path: Path) -> int | None:
    if not path.exists():
        return None
    d = Description.load(path)
    return d.integer("max_seq_length") if d.get("max_seq_length") is not None else None
