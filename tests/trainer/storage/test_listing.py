import os
from pathlib import Path

import pytest

from trainer.storage.listing import all_below, matching


def test_what_matches_is_sorted_by_name(tmp_path):
    for name in ("b.pt", "a.pt", ".c.pt", "a.txt", "[x].pt"):
        (tmp_path / name).touch()
    assert [path.name for path in matching(tmp_path, "*.pt")] == [".c.pt", "[x].pt", "a.pt", "b.pt"]
    assert [path.name for path in matching(tmp_path, "[!.]*.pt")] == ["[x].pt", "a.pt", "b.pt"]
    assert matching(tmp_path / "missing") == []


@pytest.mark.posix
def test_contents_come_before_their_folder_and_links_are_not_followed(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in all_below(tmp_path)]
    assert found == ["a/b/c", "a/b", "a", "link"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(NotADirectoryError):
        matching(tmp_path / "folder")


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_a_folder_that_this_user_may_not_read_is_an_error(tmp_path, monkeypatch):
    """Path.glob finds nothing in it, and os.walk leaves it out."""
    monkeypatch.chdir(tmp_path)  # the folders above are closed to others
    tmp_path.chmod(0o755)
    Path("closed").mkdir(mode=0)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            list(all_below(Path()))
    finally:
        os.seteuid(0)
