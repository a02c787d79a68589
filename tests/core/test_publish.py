from pathlib import Path

import pytest

from systolith.errors import UserError
from systolith.publish import publish


def test_all_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    paths = publish(tmp_path / "new", {"a.txt": "a", "sub/b.bin": b"\x00", "last.json": "{}"})
    assert [path.read_bytes() for path in paths] == [b"a", b"\x00", b"{}"]
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["a.txt", "last.json", "sub"]
    publish(tmp_path, {"a.txt": "again", "last.json": "[]"})
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert (tmp_path / "a.txt").read_text() == "again"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*file"):
        publish(tmp_path / "file", {"a.txt": "a"})
