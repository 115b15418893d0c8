"""All attacks there are, and which of them are those that issue 6 lists."""

from __future__ import annotations

from mesh_attacks import (
    accounts,
    calls,
    certificates,
    dht,
    feeds,
    files,
    frames,
    leadership,
    permits,
    receipts,
    relay,
    tls,
)

SUITES = tuple(
    module.SUITE
    for module in (
        certificates,
        tls,
        frames,
        calls,
        dht,
        accounts,
        permits,
        files,
        feeds,
        leadership,
        relay,
        receipts,
    )
)

PERMITS = "network.test_a_processor_works_for_a_permit_of_its_own_and_once"
LIARS = "network.test_processors_that_lie_are_believed_nothing_paid_nothing_and_asked_no_more"
LISTED: dict[str, tuple[str, ...]] = {
    "fake gateway announcement": (
        "dht.fake_gateway",
        "calls.collects_passwords_without_being_a_gateway",
        "network.test_a_processor_that_calls_itself_a_gateway_is_told_no_password",
    ),
    "forged record": ("dht.forged", "dht.borrowed_certificate"),
    "replayed record": ("dht.replayed", "dht.put_by_another"),
    "expired record": ("dht.expired", "dht.long_lived"),
    "processor called without a permit": ("permits.no_permit", "permits.forged_permit", PERMITS),
    "permit used before": ("permits.permit_used_before", PERMITS),
    "permit used before, after a restart": (
        "permits.permit_used_before_a_restart",
        "permits.permit_used_before_a_crash",
        "permits.permit_used_before_the_machine_went_down",
        PERMITS,
    ),
    "permit made for another processor": ("permits.permit_for_another_processor", PERMITS),
    "stolen endpoint id": ("tls.stolen_id", "calls.shows_the_certificate_of_another"),
    "role certificate of another network": (
        "certificates.of_another_network",
        "certificates.under_another_root",
        "dht.another_network",
    ),
    "JWT with none": ("accounts.jwt_without_signature",),
    "JWT of a wrong key": (
        "accounts.jwt_of_another_key",
        "accounts.jwt_with_the_public_key_as_secret",
    ),
    "JWT with an old kid": ("accounts.jwt_of_an_old_kid", "accounts.jwt_of_a_revoked_kid"),
    "refresh-token reuse": ("accounts.refresh_token_used_twice",),
    "user enumeration by timing": ("accounts.enumeration_by_timing",),
    "log fork": ("feeds.log_fork", "feeds.forged_proof_of_a_fork"),
    "tampered database file": ("feeds.tampered_file",),
    "flooded DHT": ("dht.thousands_of_puts", "dht.many_topics_of_one", "dht.flooded_topic"),
    "oversized frames": ("frames.frame_without_end", "frames.body_without_end"),
    "malformed frames": ("frames.frames_that_are_none", "frames.requests_that_are_none"),
    "slow reader": (
        "calls.asks_for_a_stream_and_never_reads_it",
        "calls.asks_for_a_stream_and_lets_the_link_fill",
    ),
    "processor that returns garbage": (
        "relay.piece_that_nobody_asked_for",
        "relay.numbers_that_make_no_sense",
        "relay.goes_on_after_the_end",
        "relay.ends_before_the_completion",
        LIARS,
    ),
    "processor that claims more tokens than it made": (
        "relay.claims_more_tokens_than_it_sent",
        "relay.sends_more_tokens_than_were_asked_for",
        "relay.claims_a_longer_prompt",
        LIARS,
    ),
}
"""By the words of the issue: "The attack list, each with a test". Names are those of a suite and an
attack, or of a test over real links in `test_network.py`."""
