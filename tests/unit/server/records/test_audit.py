"""The audit log: bounded in an answer, and in time."""

import pytest

from tinkex.server.records import audit as audit_module
from tinkex.server.records.audit import RESOURCES, AuditEvent, AuditLog


@pytest.fixture
def audit(database, clock):
    return AuditLog(database, clock=clock)


async def note(audit, **details):
    await audit.note(AuditEvent.KEY_CREATED, owner="o", key_id="k", **details)


async def read(audit):
    return (await audit.read(None, resource=None, day=None)).entries


def test_every_event_is_in_a_group_of_the_official_api_and_has_a_name_of_its_own():
    assert {event.resource for event in AuditEvent} <= set(RESOURCES)
    assert len({event.event for event in AuditEvent}) == len(AuditEvent)


async def test_of_a_day_with_too_many_events_the_newest_are_told_in_their_order(audit, monkeypatch):
    monkeypatch.setattr(audit_module, "MAX_ENTRIES", 2)
    for number in range(4):
        await note(audit, number=number)
    assert [entry.event_details["number"] for entry in await read(audit)] == [2, 3]


async def test_old_events_are_erased(audit, clock):
    await note(audit, number=0)
    clock.advance(10)
    await note(audit, number=1)
    await audit.prune(clock.now() - 5)
    assert [entry.event_details["number"] for entry in await read(audit)] == [1]
