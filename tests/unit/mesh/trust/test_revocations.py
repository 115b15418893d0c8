from __future__ import annotations

from tinkex.mesh.trust.revocations import Revocations


def test_a_revoked_peer_stays_out_and_others_stay_in(mesh):
    revocations = Revocations()
    revocations.revoke(mesh.auth.peer_id, 1.0)
    revocations.revoke(mesh.auth.peer_id, 2.0)
    assert revocations.is_revoked(mesh.auth.peer_id)
    assert not revocations.is_revoked(mesh.root.peer_id)
    assert len(revocations) == 1
