import hashlib

import pytest

from trainer.storage import hashing
from trainer.storage.hashing import sha256_of


@pytest.mark.parametrize("size", [0, 1, 8, 20])
def test_the_hash_covers_every_block(tmp_path, monkeypatch, size):
    monkeypatch.setattr(hashing, "_BLOCK", 8)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
