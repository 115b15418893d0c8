"""The root key in a real file, stretched at its full cost."""

from __future__ import annotations

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.rootkey import read_root_key, write_root_key

PASSPHRASE = "a long passphrase"


def test_a_root_key_opens_with_its_passphrase_at_its_full_cost(tmp_path):
    path, root = tmp_path / "root.key", KeyPair.generate()
    write_root_key(path, root, PASSPHRASE)
    assert root.seed not in path.read_bytes()
    assert read_root_key(path, PASSPHRASE).seed == root.seed
