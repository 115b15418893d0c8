"""Who calls, as the routes see it."""

from types import SimpleNamespace

import pytest

from tinkex.server.accounts.caller import MEMBER, MEMBER_SCOPES, SCOPES, Caller
from tinkex.server.routes.messages import caller_of, owner_of


def test_caller_cannot_be_changed():
    caller = Caller("account", "key", MEMBER, MEMBER_SCOPES)
    with pytest.raises(AttributeError):
        caller.owner = "somebody else"


@pytest.mark.parametrize(
    ("role", "scopes"), [(MEMBER, SCOPES), ("admin", MEMBER_SCOPES), (MEMBER, frozenset())]
)
def test_admins_work_needs_both_the_role_and_the_scope(role, scopes):
    assert not Caller("a", "k", role, scopes).is_admin
    assert Caller("a", "k", "admin", SCOPES).is_admin


def test_request_tells_its_caller():
    caller = Caller("account", "key", MEMBER, MEMBER_SCOPES)
    request = SimpleNamespace(state=SimpleNamespace(caller=caller))
    assert caller_of(request) is caller
    assert owner_of(request) == "account"
