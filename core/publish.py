"""Several files that belong together, written so that none is ever half there."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from systolith.errors import UserError


def publish(directory: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Writes ``files`` (names, perhaps with a folder, and contents) and returns their paths.

    All are made in a folder inside ``directory`` and then renamed, in the order given: what
    describes the others comes last, and an older one of it goes first. Other files there are left
    alone. Raises ``UserError`` where it cannot write.
    """
    directory = Path(directory)
    work = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".systolith-", dir=directory))
        for name, content in files.items():
            path = work / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        *_, last = files
        (directory / last).unlink(missing_ok=True)
        for name in files:
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(work / name, directory / name)
    except OSError as error:
        raise UserError(f"Cannot write to {directory}: {error.strerror}") from None
    finally:
        if work is not None:
            shutil.rmtree(work)
    return [directory / name for name in files]
