"""The auth worker, called as a gateway and a guest call it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import msgspec
import pytest
from mesh_auth import EMAIL, PASSWORD, AuthWorld
from mesh_rpc import caught, settled

from tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConflictError,
    InputError,
    NoQuorumError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    StorageError,
    TrustError,
)
from tinkex.mesh.accounts.credentials import digest
from tinkex.mesh.accounts.events import (
    KeyPublished,
    PeerJoined,
    SigningKeyAdded,
    SigningKeyRevoked,
    decode_events,
    decode_public_events,
)
from tinkex.mesh.accounts.tokens import Claims, TokenSigner
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.feeds.vault import PersonKey
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.purse import Purse
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials
from tinkex.mesh.rpc.service import methods_of
from tinkex.mesh.trust.certificates import Chain, Grant, check_certificate, make_certificate
from tinkex.mesh.trust.network import (
    change_members,
    check_network,
    rotate_root,
    shut_out_peer,
)
from tinkex.mesh.trust.revocations import Revocations
from tinkex.mesh.usage import Countersigned
from tinkex.mesh.workers.auth import ACCOUNT_S, KEY_WAIT_S
from tinkex.mesh.workers.authority import hashing, spending
from tinkex.mesh.workers.authority.api import AuthService
from tinkex.mesh.workers.public_accounts import NetworkView, PublicView
from tinkex.mesh.workers.root_word import RootWord


@pytest.fixture
async def home(tmp_path):
    async with AuthWorld(path=tmp_path) as world:
        yield world


@pytest.fixture
def make_home(tmp_path):
    return lambda **settings: AuthWorld(path=tmp_path, settings=settings)


def refusal(error):
    return type(error), str(error)


async def public_events(world):
    return [
        event
        async for entry in world.feeds.entries("accounts-public")
        for event in decode_public_events(entry.payload)
    ]


async def test_call_under_way_is_answered_before_the_end(home):
    await home.register()
    began, go = threading.Event(), threading.Event()
    matches = home.passwords.matches

    def slowly(stored, password):
        began.set()
        go.wait()
        return matches(stored, password)

    home.passwords.matches = slowly
    logging_in = asyncio.ensure_future(home.log_in())
    try:
        await asyncio.to_thread(began.wait)
        stopping = asyncio.ensure_future(home.worker.stop(30.0))
        await settled()
        assert not stopping.done()
        assert await home.board.member(home.auth_peers.contact, None).lookup("auth") == ()
    finally:
        go.set()
    assert (await logging_in).access_token
    await stopping


async def test_call_under_way_holds_up_the_end_for_its_grace_and_no_longer(home):
    await home.register()
    go = threading.Event()
    home.passwords.matches = lambda *_: go.wait()
    logging_in = asyncio.ensure_future(home.log_in())
    try:
        await settled()
        stopping = asyncio.ensure_future(home.worker.stop(10.0))
        await home.pass_time(9, 0.5)
        assert not stopping.done()
        await home.pass_time(1.5, 0.5)
        assert stopping.done()
    finally:
        go.set()
        await asyncio.gather(logging_in, return_exceptions=True)


async def private_entries(world):
    return [entry.payload async for entry in world.feeds.entries("accounts-private")]


# --- accounts and sessions ----------------------------------------------------


async def test_an_account_is_registered_logged_in_and_verified_offline(home):
    registered = await home.register(email=" Ann@Example.ORG ")
    session = await home.log_in()
    caller = home.worker._public.verify(session.access_token, home.clock.now())
    assert caller.account_id == registered.account_id
    assert session.access_expires_at == home.clock.now() + 600
    assert EMAIL not in repr(session) + repr(registered) + repr(auth.Login(EMAIL, PASSWORD))
    again = await home.call(AuthApi.rpc_refresh, auth.Refresh(session.refresh_token))
    assert again.refresh_token != session.refresh_token
    assert await home.call(AuthApi.rpc_logout, auth.Logout(again.access_token)) == auth.Done()
    for request in (auth.Logout(again.access_token), auth.Logout(session.access_token)):
        error = await caught(home.call(AuthApi.rpc_logout, request))
        assert refusal(error) == (
            AuthenticationError,
            "this session has ended: log in again",
        )


async def test_an_address_registers_once_and_a_short_password_or_no_address_not_at_all(home):
    await home.register()
    assert isinstance(await caught(home.register()), ConflictError)
    assert isinstance(await caught(home.register("b@example.org", "short")), InputError)
    assert isinstance(await caught(home.register("nobody")), InputError)


async def test_two_who_register_one_address_at_once_get_one_account(home):
    answers = await asyncio.gather(*(home.register() for _ in range(4)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["ConflictError"] * 3 + [
        "Registered"
    ]


async def test_a_client_registers_so_often_and_another_is_not_held_up(make_home):
    async with make_home(registrations_per_hour=2) as home:
        for number in range(2):
            await home.register(f"user{number}@example.org")
        error = await caught(home.register("user3@example.org"))
        assert isinstance(error, RateLimitError)
        assert 0 < error.retry_after_ms <= 3_600_001
        assert await home.register("user3@example.org", source=b"other")


async def test_registration_can_be_closed(make_home):
    async with make_home(registration_open=False) as home:
        assert isinstance(await caught(home.register()), PermissionDeniedError)


async def test_unknown_address_and_wrong_password_take_the_same_work_and_get_the_same_words(home):
    await home.register()
    answers, work = [], []
    for email, password in (
        (EMAIL, "wrong horse battery"),
        ("nobody@example.org", PASSWORD),
        ("no address", PASSWORD),
        (EMAIL, "x" * 5000),
    ):
        before = home.passwords.compared, home.passwords.hashed, len(await private_entries(home))
        answers.append(refusal(await caught(home.log_in(email, password))))
        after = home.passwords.compared, home.passwords.hashed, len(await private_entries(home))
        work.append(tuple(b - a for a, b in zip(before, after, strict=True)))
    assert set(answers) == {(AuthenticationError, "the e-mail address or the password is wrong")}
    assert set(work) == {(1, 0, 0)}


async def test_a_taken_address_costs_as_many_hashes_as_a_free_one(home):
    await home.register()
    before = home.passwords.hashed
    await caught(home.register())
    assert home.passwords.hashed == before + 1


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.org"])
async def test_who_guesses_has_to_wait_even_with_the_right_password_and_after_a_restart(
    make_home, email
):
    async with make_home(failures_per_account=3, lockout_s=60) as home:
        await home.register()
        for _ in range(3):
            error = await caught(home.log_in(email, "wrong horse battery", source=b"a"))
            assert isinstance(error, AuthenticationError)
        for again in (False, True):
            if again:
                await home.restart()
            hashes = home.passwords.compared
            error = await caught(home.log_in(email, PASSWORD, source=b"b"))
            assert isinstance(error, RateLimitError)
            assert 59_000 < error.retry_after_ms <= 60_001
            assert home.passwords.compared == hashes
        home.clock.advance(61)
        if email == EMAIL:
            assert await home.log_in()


async def test_a_client_that_guesses_at_many_accounts_has_to_wait_and_others_do_not(make_home):
    async with make_home(failures_per_source=3) as home:
        await home.register()
        for number in range(3):
            await caught(home.log_in(f"user{number}@example.org", source=b"thief"))
        assert isinstance(await caught(home.log_in(source=b"thief")), RateLimitError)
        assert await home.log_in(source=b"client")


async def test_guesses_made_at_once_are_counted_like_guesses_one_after_the_other(make_home):
    async with make_home(failures_per_account=3) as home:
        await home.register()
        words = ["wrong horse battery"] * 6 + [PASSWORD]
        answers = await asyncio.gather(
            *(home.log_in(password=word) for word in words), return_exceptions=True
        )
        kinds = [type(answer) for answer in answers]
        assert kinds.count(AuthenticationError) == 3
        assert kinds.count(RateLimitError) == 4


async def test_more_logins_than_may_wait_are_sent_away_unhashed(make_home):
    async with make_home(max_waiting=2) as home:
        answers = await asyncio.gather(
            *(home.log_in(f"user{n}@example.org") for n in range(5)), return_exceptions=True
        )
        away = [answer for answer in answers if isinstance(answer, RateLimitError)]
        assert len(away) == 3
        assert {answer.retry_after_ms for answer in away} == {hashing.RETRY_MS}
        assert home.passwords.compared == 2


async def test_a_refresh_token_used_twice_ends_the_session_for_gateways_too(home):
    await home.register()
    first = await home.log_in()
    second = await home.call(AuthApi.rpc_refresh, auth.Refresh(first.refresh_token))
    for token in (first.refresh_token, second.refresh_token):
        error = await caught(home.call(AuthApi.rpc_refresh, auth.Refresh(token)))
        assert isinstance(error, AuthenticationError)
    with pytest.raises(AuthenticationError, match="ended"):
        home.worker._public.verify(second.access_token, home.clock.now())


async def test_the_signing_key_is_replaced_before_its_end_and_announced_ahead(make_home):
    async with make_home(signing_key_s=7200, session_s=50_000) as home:
        await home.register()
        session, kids = await home.log_in(), []
        for _ in range(4):
            home.clock.advance(3601)
            session = await home.call(AuthApi.rpc_refresh, auth.Refresh(session.refresh_token))
            assert home.worker._public.verify(session.access_token, home.clock.now())
            events = await public_events(home)
            kids.append(len([event for event in events if isinstance(event, SigningKeyAdded)]))
        assert kids[0] == 2
        assert kids[-1] >= 3


async def test_a_revoked_signing_key_voids_its_tokens_and_the_next_login_has_another(home):
    await home.register()
    session = await home.log_in()
    (key,) = [event for event in await public_events(home) if isinstance(event, SigningKeyAdded)]
    await home.worker._log.note(SigningKeyRevoked(at=home.clock.now(), kid=key.kid))
    with pytest.raises(AuthenticationError, match="signing key"):
        home.worker._public.verify(session.access_token, home.clock.now())
    session = await home.log_in()
    assert home.worker._public.verify(session.access_token, home.clock.now())


async def test_tokens_that_a_shut_out_auth_worker_signs_hold_no_more(home):
    account, now = (await home.register()).account_id, home.clock.now()
    stolen = KeyPair.generate()
    signer = TokenSigner(stolen, home.trust.network)
    await home.worker._log.note(signer.announce("k9", now=now, lasts_s=86_400, token_s=600))
    claims = Claims(account_id=account, session_id="ses-9", issued_at=now, expires_at=now + 600)
    token = signer.sign("k9", claims)
    assert home.worker._public.verify(token, now).account_id == account
    own = (await home.log_in()).access_token
    home.encoded = shut_out_peer(home.root, home.encoded, stolen.peer_id)
    for _ in range(2):
        await home.worker.network.describe(home.encoded)
    with pytest.raises(AuthenticationError, match="signing key"):
        home.worker._public.verify(token, now)
    assert home.worker._public.verify(own, now).account_id == account
    assert set(home.worker.book.state.revoked_signing_keys) == {"k9"}


async def test_a_closed_account_is_erased_for_good(home):
    registered = await home.register()
    session = await home.log_in()
    made = await home.new_key(session)
    wrong = auth.CloseAccount(session.access_token, "wrong horse battery")
    error = await caught(home.call(AuthApi.rpc_close_account, wrong))
    assert isinstance(error, AuthenticationError)
    right = auth.CloseAccount(session.access_token, PASSWORD)
    await home.call(AuthApi.rpc_close_account, right)
    assert home.worker._vault.erased(registered.account_id)
    assert isinstance(await caught(home.log_in()), AuthenticationError)
    for credential in (session.access_token, made.key):
        assert isinstance(await caught(home.usage(credential)), AuthenticationError)
    await home.restart()
    assert home.worker.book.state.accounts[registered.account_id].email == ""
    stored = b"".join(path.read_bytes() for path in home.path.iterdir())
    assert EMAIL.encode() not in stored
    assert (await home.register()).account_id != registered.account_id


async def test_an_erasure_that_a_crash_cut_off_is_made_good_at_the_next_start(home):
    registered = await home.register()
    session = await home.log_in()

    async def crash(_):
        raise StorageError("the disk is full")

    home.worker._vault.erase = crash
    right = auth.CloseAccount(session.access_token, PASSWORD)
    assert isinstance(await caught(home.call(AuthApi.rpc_close_account, right)), StorageError)
    await home.restart()
    assert home.worker._vault.erased(registered.account_id)


async def test_an_erasure_that_was_cut_off_is_made_good_without_a_restart(home):
    registered = await home.register()
    session = await home.log_in()
    right = auth.CloseAccount(session.access_token, PASSWORD)
    done = asyncio.Event()

    async def refused(_):
        raise StorageError("the disk is full")

    erase, home.worker._vault.erase = home.worker._vault.erase, refused
    assert isinstance(await caught(home.call(AuthApi.rpc_close_account, right)), StorageError)

    async def has_room(person):
        await erase(person)
        done.set()

    home.worker._vault.erase = has_room
    home.clock.advance(ACCOUNT_S + 1)
    await done.wait()
    assert home.worker._vault.erased(registered.account_id)


async def without_key(home, account_id):
    """As an auth worker that has an account's entries, and not yet the key that reads them."""
    vault = home.vault
    (name,) = [name for name in vault._keys if name[0] == account_id]
    key = PersonKey(*name, vault._keys.pop(name))
    del vault._newest[account_id]
    home.worker._private.refold()
    await home.worker._private.current()
    return key


async def test_no_address_is_registered_twice_while_a_persons_key_is_on_its_way(home):
    key = await without_key(home, (await home.register()).account_id)
    for address in (EMAIL, "bob@example.org"):  # whose account it is, nobody can say
        error = await caught(home.register(address))
        assert isinstance(error, NoQuorumError)
        assert "try again" in str(error)
    await home.vault.add([key])
    assert isinstance(await caught(home.register()), ConflictError)
    await home.register("bob@example.org")


async def test_nobody_is_told_that_a_password_is_wrong_while_a_persons_key_is_on_its_way(home):
    registered = await home.register()
    session = await home.log_in()
    await home.register("bob@example.org")
    key = await without_key(home, registered.account_id)
    for address in (EMAIL, "bob@example.org", "nobody@example.org"):
        password = PASSWORD if address == EMAIL else "wrong horse battery"
        assert isinstance(await caught(home.log_in(address, password)), NoQuorumError)
    closing = auth.CloseAccount(session.access_token, PASSWORD)
    changing = auth.ChangePassword(session.access_token, PASSWORD, "another good password")
    for method, request in (
        (AuthApi.rpc_close_account, closing),
        (AuthApi.rpc_change_password, changing),
    ):
        assert isinstance(await caught(home.call(method, request)), NoQuorumError)
    assert (await home.log_in("bob@example.org")).access_token, "whose key is here"
    await home.vault.add([key])
    assert (await home.log_in()).access_token
    wrong = await caught(home.log_in(password="wrong horse battery"))
    assert isinstance(wrong, AuthenticationError)


async def test_trying_again_until_a_persons_key_comes_makes_nobody_wait(home):
    home.settings["failures_per_account"] = 3
    await home.restart()
    key = await without_key(home, (await home.register()).account_id)
    for attempt in range(4):
        source = f"client {attempt}".encode()
        assert isinstance(await caught(home.log_in(source=source)), NoQuorumError)
    await home.vault.add([key])
    assert (await home.log_in()).access_token


async def test_key_that_is_lost_for_good_keeps_nobody_from_registering_for_long(home):
    lost = (await home.register()).account_id
    await without_key(home, lost)
    assert isinstance(await caught(home.register()), NoQuorumError)
    home.clock.advance(KEY_WAIT_S + 1)
    assert (await home.register()).account_id != lost
    await home.log_in()


async def test_erased_person_keeps_nobody_from_registering(home):
    lost = (await home.register()).account_id
    await without_key(home, lost)
    await home.vault.erase(lost)
    await home.register()


# --- keys ---------------------------------------------------------------------


async def test_keys_are_made_listed_and_revoked(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(
        session, scopes=frozenset({"infer"}), expires_in_s=60.0, token_cap=500
    )
    (listed,) = (await home.call(AuthApi.rpc_list_keys, auth.ListKeys(session.access_token))).keys
    assert listed == made.info
    assert (listed.name, listed.token_cap, listed.scopes) == ("laptop", 500, {"infer"})
    assert made.key.startswith(listed.prefix)
    assert made.key not in repr(made)
    caller = home.worker._public.verify(made.key, home.clock.now())
    assert (caller.key_id, caller.scopes) == (listed.key_id, {"infer"})
    revoke = auth.RevokeKey(session.access_token, listed.key_id)
    for _ in range(2):
        await home.call(AuthApi.rpc_revoke_key, revoke)
    with pytest.raises(AuthenticationError, match="revoked"):
        home.worker._public.verify(made.key, home.clock.now())
    (listed,) = (await home.call(AuthApi.rpc_list_keys, auth.ListKeys(session.access_token))).keys
    assert listed.revoked_at == home.clock.now()


async def test_what_gateways_are_told_at_once_may_be_more_than_an_entry_holds(home):
    """As after `rotate-root --stolen`, when all keys that there are are told once more."""
    await home.register()
    made = await home.new_key(await home.log_in())
    known = home.worker._public.book._keys[digest(made.key)]
    told = [
        msgspec.structs.replace(known, key_id=f"key-{number}", key_hash=number.to_bytes(32))
        for number in range(4000)
    ]
    await home.worker._log.tell(told, [])
    await home.worker._current()
    assert all(home.worker._public.book.knows(event) for event in told)
    assert await home.new_key(await home.log_in())


async def test_a_key_makes_no_keys_and_closes_no_account(home):
    await home.register()
    made = await home.new_key(await home.log_in())
    for method, request in (
        (AuthApi.rpc_create_key, auth.CreateKey(made.key, "more")),
        (AuthApi.rpc_list_keys, auth.ListKeys(made.key)),
        (AuthApi.rpc_revoke_key, auth.RevokeKey(made.key, made.info.key_id)),
        (AuthApi.rpc_close_account, auth.CloseAccount(made.key, PASSWORD)),
        (AuthApi.rpc_logout, auth.Logout(made.key)),
    ):
        assert isinstance(await caught(home.call(method, request)), PermissionDeniedError)


async def test_what_a_key_cannot_be_is_refused_and_anothers_key_is_not_found(home):
    await home.register()
    await home.register("bob@example.org")
    ann, bob = await home.log_in(), await home.log_in("bob@example.org")
    assert isinstance(await caught(home.new_key(ann, token_cap=-1)), InputError)
    made = await home.new_key(ann)
    revoke = auth.RevokeKey(bob.access_token, made.info.key_id)
    assert isinstance(await caught(home.call(AuthApi.rpc_revoke_key, revoke)), NotFoundError)


# --- leases and usage -----------------------------------------------------------


async def test_usage_is_what_gateways_wrote_and_not_what_they_claim(make_home):
    async with make_home(default_quota_tokens=1000, lease_tokens=200) as home:
        account = (await home.register()).account_id
        made = await home.new_key(await home.log_in())
        lease = await home.lease(account, made.info.key_id)
        assert lease.tokens == 125
        feeds = await home.gateway_feeds()
        purse, now = Purse(), home.clock.now()
        purse.put_in(lease.lease_id, account, made.info.key_id, lease.tokens, lease.expires_at)
        reserved = purse.reserve("r1", account, made.info.key_id, "m", 100, now)
        settled = purse.settle("r1", prompt_tokens=30, completion_tokens=40, now=now)
        signed = Countersigned(lease_id=lease.lease_id, at=now, request_id="r1", signature=b"s")
        report = await home.usage(made.key)
        assert (report.used_tokens, report.reserved_tokens) == (0, 125)
        await home.replicate(feeds, reserved, settled, signed)
        await home.call(AuthApi.rpc_settle, auth.SettleLease(lease.lease_id, 5))
        report = await home.usage(made.key)
        assert (report.quota_tokens, report.used_tokens, report.reserved_tokens) == (1000, 70, 0)
        (entry,) = report.entries
        assert (entry.request_id, entry.gateway) == ("r1", home.gateway.peer_id.raw)
        assert (entry.prompt_tokens, entry.completion_tokens) == (30, 40)
        assert entry.state == "countersigned"
        assert (await home.usage(made.key, since=now + 1)).entries == ()
        await home.replicate(feeds, *purse.close_all(now))
        before = home.worker._usage_of(home.gateway.peer_id.raw)
        assert before.lease(lease.lease_id).closed
        await home.lease(account, made.info.key_id, tokens=800)
        assert not before.lease(lease.lease_id).closed, "it is in the accounts' log now"
        await home.restart()
        report = await home.usage(made.key)
        assert (report.used_tokens, report.reserved_tokens) == (70, 800)
        await feeds.close()


async def test_the_report_comes_in_pages_and_sums_what_is_not_listed_any_more(
    make_home, monkeypatch
):
    monkeypatch.setattr(spending, "MAX_ENTRIES", 2)
    async with make_home(lease_tokens=200) as home:
        account = (await home.register()).account_id
        made = await home.new_key(await home.log_in())
        lease = await home.lease(account, made.info.key_id)
        feeds = await home.gateway_feeds()
        purse, start = Purse(), home.clock.now()
        purse.put_in(lease.lease_id, account, made.info.key_id, 200, lease.expires_at)
        for number in range(5):
            now = start + number
            reserved = purse.reserve(f"r{number}", account, made.info.key_id, "m", 9, now)
            settled = purse.settle(f"r{number}", prompt_tokens=3, completion_tokens=4, now=now)
            await home.replicate(feeds, reserved, settled)
        usage = home.worker._usage_of(home.gateway.peer_id.raw)

        def listed(report):
            return [one.request_id for one in report.entries]

        report = await home.usage(made.key)
        assert (listed(report), report.listed_since) == (["r3", "r4"], start + 3)
        report = await home.usage(made.key, before=start + 2)
        assert (listed(report), report.listed_since) == (["r1", "r2"], start + 1)
        report = await home.usage(made.key, before=start + 1)
        assert (listed(report), report.listed_since) == (["r0", "r1"], 0.0)
        assert report.earlier == ()
        usage._remembered = 3
        now += 1
        reserved = purse.reserve("r5", account, made.info.key_id, "m", 9, now)
        settled = purse.settle("r5", prompt_tokens=3, completion_tokens=4, now=now)
        await home.replicate(feeds, reserved, settled)
        report = await home.usage(made.key, before=start + 1)
        assert (listed(report), report.listed_since) == (["r1"], start)
        (month,) = report.earlier
        assert (month.requests, month.prompt_tokens, month.completion_tokens) == (1, 3, 4)
        assert report.used_tokens == 6 * 7
        await feeds.close()


@pytest.mark.parametrize(("skew_s", "ahead_s"), [(-60, -60), (60, 60), (61, 0), (float("nan"), 0)])
async def test_a_lease_ends_by_the_clock_of_its_gateway(make_home, skew_s, ahead_s):
    async with make_home(lease_s=30.0) as home:
        account = (await home.register()).account_id
        lease = await home.lease(account, skew_s=skew_s)
        assert lease.expires_at == home.clock.now() + ahead_s + 30


async def test_a_lease_that_ended_is_accounted_for_though_its_account_asks_for_no_other(make_home):
    async with make_home(lease_tokens=200) as home:
        account = (await home.register()).account_id
        made = await home.new_key(await home.log_in())
        lease = await home.lease(account, made.info.key_id)
        feeds = await home.gateway_feeds()
        purse, now = Purse(), home.clock.now()
        purse.put_in(lease.lease_id, account, made.info.key_id, 200, lease.expires_at)
        reserved = purse.reserve("r", account, made.info.key_id, "m", 9, now)
        settled = purse.settle("r", prompt_tokens=3, completion_tokens=4, now=now)
        await home.replicate(feeds, reserved, settled)
        await home.worker.spending.account_for_ended()
        assert home.worker.book.ledger.gateway_of(lease.lease_id) is not None, "it is open yet"
        await home.replicate(feeds, *purse.close_all(now))
        await home.worker.spending.account_for_ended()
        assert home.worker.book.ledger.gateway_of(lease.lease_id) is None
        assert not home.worker._usage_of(home.gateway.peer_id.raw).knows(lease.lease_id)
        assert (await home.usage(made.key)).used_tokens == 7
        await feeds.close()


async def test_a_used_up_quota_or_cap_is_refused_at_every_gateway(make_home):
    async with make_home(default_quota_tokens=1000) as home:
        account = (await home.register()).account_id
        session = await home.log_in()
        capped = await home.new_key(session, token_cap=50)
        other = await home.joined(Role.GATEWAY)
        error = await caught(home.lease(account, capped.info.key_id, tokens=51))
        assert isinstance(error, BillingError)
        assert "key's cap" in str(error)
        await home.lease(account, capped.info.key_id, tokens=30)
        error = await caught(home.lease(account, capped.info.key_id, tokens=30, gateway=other))
        assert isinstance(error, RateLimitError)
        assert isinstance(await caught(home.lease(account, tokens=1001)), BillingError)
        assert await home.lease(account, tokens=900, gateway=other)
        assert isinstance(await caught(home.lease(account, tokens=900)), RateLimitError)


async def test_leases_asked_for_at_once_never_add_up_to_more_than_the_quota(make_home):
    async with make_home(default_quota_tokens=1000) as home:
        account = (await home.register()).account_id
        gateways = [await home.joined(Role.GATEWAY) for _ in range(3)]
        answers = await asyncio.gather(
            *(home.lease(account, tokens=90, gateway=gateway) for gateway in gateways * 5),
            return_exceptions=True,
        )
        given = sum(answer.tokens for answer in answers if isinstance(answer, auth.Lease))
        assert 900 < given <= 1000
        assert {type(answer) for answer in answers} == {auth.Lease, RateLimitError}


async def test_no_lease_for_what_is_revoked_expired_closed_or_unknown(home):
    account = (await home.register()).account_id
    session = await home.log_in()
    brief = await home.new_key(session, expires_in_s=10.0)
    ended = await home.new_key(session)
    await home.call(AuthApi.rpc_revoke_key, auth.RevokeKey(session.access_token, ended.info.key_id))
    assert await home.lease(account, brief.info.key_id)
    home.clock.advance(11)
    for account_id, key_id, words in (
        (account, brief.info.key_id, "expired"),
        (account, ended.info.key_id, "revoked"),
        (account, "key-unknown", "not known"),
        ("acc-unknown", "", "closed"),
    ):
        error = await caught(home.lease(account_id, key_id))
        assert isinstance(error, AuthenticationError)
        assert words in str(error)
    for tokens in (0, -5, 1 << 50):
        assert isinstance(await caught(home.lease(account, tokens=tokens)), InputError)


async def test_a_gateway_settles_its_own_leases_alone(home):
    account = (await home.register()).account_id
    lease = await home.lease(account)
    other = await home.joined(Role.GATEWAY)
    settle = auth.SettleLease(lease.lease_id, 5)
    assert isinstance(await caught(home.call(AuthApi.rpc_settle, settle, other)), NotFoundError)
    negative = auth.SettleLease(lease.lease_id, -5)
    assert isinstance(await caught(home.call(AuthApi.rpc_settle, negative)), InputError)
    unknown = auth.SettleLease("lea-unknown", 5)
    assert await home.call(AuthApi.rpc_settle, unknown) == auth.Done()


async def test_a_quota_is_set_by_the_operator(home):
    account = (await home.register()).account_id
    made = await home.new_key(await home.log_in(), scopes=frozenset({"infer"}))
    await home.worker.spending.set_quota(account, 5)
    assert isinstance(await caught(home.lease(account, tokens=6)), BillingError)
    await home.worker.spending.set_quota(account, None)
    assert await home.lease(account, tokens=10**9)
    assert isinstance(await caught(home.worker.spending.set_quota(account, -1)), InputError)
    assert isinstance(await caught(home.worker.spending.set_quota("x", 1)), NotFoundError)
    assert isinstance(await caught(home.usage(made.key)), PermissionDeniedError)


# --- the network ----------------------------------------------------------------


async def guest(home):
    key_pair = KeyPair.generate()
    return await home.peer(credentials=Credentials(key_pair, home.trust.network, home.trust.roots))


async def test_an_invitation_works_once_and_a_lost_answer_is_given_again(home):
    invitation = home.invitation(Role.PROCESSOR, join_s=60)
    one, other = await guest(home), await guest(home)
    joined = await home.join(invitation, one)
    checked = check_certificate(
        joined.certificate,
        network=home.trust.network,
        roots=home.trust.roots,
        now=home.clock.now(),
    )
    assert (checked.peer, checked.role) == (one.peer_id, Role.PROCESSOR)
    assert check_network(joined.network, network=home.trust.network).name == "home"
    await home.restart()
    home.clock.advance(61)
    assert await home.join(invitation, one) == joined
    error = await caught(home.join(invitation, other))
    assert refusal(error) == (
        TrustError,
        "the invitation was used by another peer: ask for another one",
    )


async def test_who_was_certified_by_a_peer_that_is_shut_out_is_certified_anew(home):
    invitation = home.invitation(Role.PROCESSOR, join_s=60)
    one, other = await guest(home), await guest(home)
    thief = home.trust.peer(Role.AUTH)
    await home.worker._log.note(
        PeerJoined(
            at=home.clock.now(),
            grant_key=invitation_key(invitation),
            peer=one.peer_id.raw,
            certificate=made_by(thief, invitation, one.peer_id, home.clock.now()),
        )
    )
    before = await home.join(invitation, one)
    assert signer(before) == thief.peer_id
    await home.worker.network.revoke(thief.peer_id)
    home.clock.advance(61)
    anew = await home.join(invitation, one)
    assert signer(anew) == home.key_pair.peer_id
    await home.restart()
    assert await home.join(invitation, one) == anew
    assert "another peer" in str(await caught(home.join(invitation, other)))


def invitation_key(invitation):
    return msgspec.msgpack.decode(invitation.grant.body, type=Grant).key


def made_by(worker, invitation, peer, now):
    return make_certificate(
        worker.key_pair,
        grant=invitation.grant,
        peer=peer,
        not_before=now,
        expires_at=now + 60,
        issuer=msgspec.msgpack.decode(worker.encoded, type=Chain),
    )


def signer(joined):
    chain = msgspec.msgpack.decode(joined.certificate, type=Chain)
    return PeerId(chain.certificate.signer)


async def test_an_invitation_that_expired_or_is_not_ones_own_is_refused(home):
    one, other = await guest(home), await guest(home)
    brief = home.invitation(join_s=10)
    error = await caught(home.join(brief, one, peer=other))
    assert isinstance(error, TrustError)
    home.clock.advance(10)
    assert "expired" in str(await caught(home.join(brief, one)))
    nonsense = auth.Join(invitation=b"x", proof=b"")
    assert isinstance(await caught(home.call(AuthApi.rpc_join, nonsense, one)), TrustError)


async def test_two_who_use_one_invitation_at_once_are_not_both_let_in(home):
    invitation = home.invitation()
    guests = [await guest(home) for _ in range(4)]
    answers = await asyncio.gather(
        *(home.join(invitation, one) for one in guests), return_exceptions=True
    )
    assert sum(isinstance(answer, auth.Joined) for answer in answers) == 1


async def test_a_peer_that_is_shut_out_calls_nothing_and_does_not_come_back(home):
    account = (await home.register()).account_id
    await home.lease(account)
    invitation, gateway = home.invitation(), await guest(home)
    joined = await home.join(invitation, gateway)
    credentials = gateway.credentials
    gateway.renew(
        Credentials(
            credentials.key_pair, credentials.network, credentials.roots, joined.certificate
        )
    )
    await home.lease(account, gateway=gateway)
    for _ in range(2):
        await home.worker.network.revoke(gateway.peer_id)
    assert isinstance(await caught(home.lease(account, gateway=gateway)), TrustError)
    assert home.worker.book.ledger.spending(account).reserved > 0
    await gateway.stop()
    again = await home.peer(
        credentials=Credentials(credentials.key_pair, home.trust.network, home.trust.roots)
    )
    assert isinstance(await caught(home.join(invitation, again)), TrustError)


async def test_guests_and_clients_may_not_call_what_is_for_gateways(home):
    stranger, client = await guest(home), await home.joined(Role.CLIENT)
    requests = {
        "auth.register": auth.Register(EMAIL, PASSWORD),
        "auth.login": auth.Login(EMAIL, PASSWORD),
        "auth.refresh": auth.Refresh("x"),
        "auth.logout": auth.Logout("x"),
        "auth.create_key": auth.CreateKey("x", "y"),
        "auth.list_keys": auth.ListKeys("x"),
        "auth.revoke_key": auth.RevokeKey("x", "y"),
        "auth.close_account": auth.CloseAccount("x", "y"),
        "auth.change_password": auth.ChangePassword("x", "y", "z"),
        "auth.usage": auth.UsageQuery("x"),
        "auth.lease": auth.LeaseRequest("x", "", 1, 0.0),
        "auth.settle": auth.SettleLease("x", 1),
    }
    methods = methods_of(AuthService)
    assert set(methods) == {*requests, "auth.join", "auth.renew"}
    assert isinstance(
        await caught(home.call(methods["auth.renew"], auth.Renew(), stranger)),
        (PermissionDeniedError, TrustError),
    )
    for path, request in requests.items():
        for peers in (stranger, client):
            error = await caught(home.call(methods[path], request, peers))
            assert isinstance(error, (PermissionDeniedError, TrustError)), path
    assert len(home.worker.book.state.accounts) == 0


async def test_a_new_description_of_the_network_is_told_at_the_next_start(home):
    first = home.encoded
    home.encoded = change_members(home.root, first, [home.key_pair.peer_id])
    await home.restart()
    assert home.worker._known.book.info.sequence == 2
    home.encoded = first
    await home.restart()
    assert home.worker._known.book.info.sequence == 2
    joined = await home.join(home.invitation(), await guest(home))
    assert check_network(joined.network, network=home.trust.network).sequence == 2


async def test_peers_that_the_root_shuts_out_are_shut_out_once(home):
    peer = home.gateway.peer_id
    account = (await home.register()).account_id
    await home.lease(account)
    home.encoded = shut_out_peer(home.root, home.encoded, peer)
    await home.restart()
    assert set(home.worker.book.state.revoked_peers) == {peer.raw}
    assert home.worker.book.ledger.spending(account).reserved == 0
    assert isinstance(await caught(home.log_in()), TrustError)
    written = len(await private_entries(home))
    await home.worker.network.revoke(peer)
    assert len(await private_entries(home)) == written


async def test_after_a_root_was_dropped_all_is_told_again_for_new_members(home):
    await home.register()
    made = await home.new_key(await home.log_in())
    await home.worker.network.revoke(KeyPair.generate().peer_id)
    before = len(await public_events(home))
    new = KeyPair.generate()
    kept = rotate_root(home.root, new, home.encoded, now=home.clock.now(), keep_old=True)
    await home.worker.network.describe(kept)
    assert len(await public_events(home)) == before
    newest = KeyPair.generate()
    dropped = rotate_root(new, newest, kept, now=home.clock.now(), keep_old=False)
    await home.worker.network.describe(dropped)
    told = (await public_events(home))[before:]
    assert made.info.key_id in {event.key_id for event in told if isinstance(event, KeyPublished)}
    assert any(isinstance(event, SigningKeyAdded) for event in told)


# --- its life -------------------------------------------------------------------


async def test_nothing_is_lost_in_a_restart(home):
    account = (await home.register()).account_id
    session = await home.log_in()
    made = await home.new_key(session)
    lease = await home.lease(account, made.info.key_id)
    before = home.worker.book.dump()
    await home.restart()
    assert home.worker.book.dump() == before
    assert (await home.usage(made.key)).reserved_tokens == lease.tokens
    assert await home.call(AuthApi.rpc_refresh, auth.Refresh(session.refresh_token))


async def test_what_a_crash_kept_from_gateways_is_told_at_the_next_start(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(session)

    async def crash(_):
        raise StorageError("the disk is full")

    home.worker._log._public = type("Broken", (), {"append": staticmethod(crash)})
    for method, request in (
        (AuthApi.rpc_revoke_key, auth.RevokeKey(session.access_token, made.info.key_id)),
        (AuthApi.rpc_logout, auth.Logout(session.access_token)),
    ):
        assert isinstance(await caught(home.call(method, request)), StorageError)
    assert home.worker._public.verify(made.key, home.clock.now())
    await home.restart()
    with pytest.raises(AuthenticationError, match="revoked"):
        home.worker._public.verify(made.key, home.clock.now())


async def test_what_could_not_be_told_is_told_before_the_next_decision(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(session)
    feed = home.worker._log._public

    async def full(_):
        raise StorageError("the disk is full")

    home.worker._log._public = type("Broken", (), {"append": staticmethod(full)})
    revoke = auth.RevokeKey(session.access_token, made.info.key_id)
    assert isinstance(await caught(home.call(AuthApi.rpc_revoke_key, revoke)), StorageError)
    home.worker._log._public = feed
    await home.call(AuthApi.rpc_revoke_key, revoke)
    with pytest.raises(AuthenticationError, match="revoked"):
        home.worker._public.verify(made.key, home.clock.now())


async def test_what_the_root_says_while_the_disk_is_full_is_told_once_there_is_room(
    home, monkeypatch, caplog
):
    stolen = home.gateway.peer_id

    async def full(_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(home.worker.network, "_journal", SimpleNamespace(append=full))
        home.member.word = RootWord(shut_out_peer(home.root, home.encoded, stolen))
        await home.pass_time(5.0, step=0.5)
        assert not home.known.book.info.shut_out
    assert [one.getMessage() for one in caplog.records].count(
        "the root's word was not carried out: the disk is full"
    ) == 1
    await home.pass_time(2.0, step=0.5)
    assert home.known.book.info.shut_out == (stolen.raw,)


async def test_a_caller_that_leaves_does_not_stop_what_is_decided(home):
    await home.register()
    session = await home.log_in()
    asked = asyncio.ensure_future(home.worker.people.log_out(session.access_token))
    await asyncio.sleep(0)  # noqa: TID251 - it has begun
    asked.cancel()
    await home.worker._tasks.finished()
    with pytest.raises(AuthenticationError, match="ended"):
        home.worker._public.verify(session.access_token, home.clock.now())


async def test_where_there_are_other_auth_workers_one_alone_reads_and_writes_nothing(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(session)
    other = KeyPair.generate().peer_id
    home.encoded = change_members(home.root, home.encoded, [home.key_pair.peer_id, other])
    await home.restart()
    assert home.worker.ready
    await home.restart()
    assert (await home.usage(made.key)).used_tokens == 0
    assert isinstance(await caught(home.log_in()), NoQuorumError)
    assert isinstance(await caught(home.register("bob@example.org")), NoQuorumError)


async def test_it_is_announced_while_it_runs(home):
    assert len(await home.worker._member.discovery.lookup("auth")) == 1
    await home.worker.stop()
    assert await home.worker._member.discovery.lookup("auth") == ()


async def copy(home, feeds, feed):
    for head, _ in await home.feeds.heads(feed):
        run = await home.feeds.run(head.chain, after=-1, limit=1000)
        await feeds.ingest([entry.encoded() for entry in run])


async def test_a_gateway_verifies_offline_with_its_copy_of_the_feed(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(session)
    feeds, now = await home.gateway_feeds(), home.clock.now()
    view = PublicView(feeds, home.trust.network, on_error=pytest.fail)
    await view.open()
    assert isinstance(await caught(asyncio.to_thread(view.verify, made.key, now)), Exception)
    await copy(home, feeds, "accounts-public")
    for credential in (made.key, session.access_token):
        assert view.verify(credential, now).account_id
    await home.call(AuthApi.rpc_revoke_key, auth.RevokeKey(session.access_token, made.info.key_id))
    await copy(home, feeds, "accounts-public")
    await view.current()
    with pytest.raises(AuthenticationError, match="revoked"):
        view.verify(made.key, now)
    await view.close()
    await feeds.close()


async def test_every_member_hears_of_revoked_peers_and_new_roots(home):
    processor = await home.joined(Role.PROCESSOR)
    feeds, revocations, changes = await home.gateway_feeds(processor), Revocations(), []
    info = check_network(home.encoded, network=home.trust.network)

    def view():
        return NetworkView(
            feeds,
            info,
            home.encoded,
            revocations,
            on_change=lambda *change: changes.append(change),
            on_error=pytest.fail,
        )

    following = view()
    await following.open()
    await home.worker.network.revoke(home.gateway.peer_id)
    await copy(home, feeds, "network")
    assert revocations.is_revoked(home.gateway.peer_id)
    assert changes == []
    first = home.encoded
    second = change_members(home.root, first, [home.key_pair.peer_id])
    await home.worker.network.describe(second)
    await copy(home, feeds, "network")
    assert [(one.sequence, encoded) for one, encoded in changes] == [(2, second)]
    await following.close()
    again = view()
    await again.open()
    assert len(changes) == 2
    await again.close()
    await feeds.close()


async def test_no_secret_is_in_the_log(home):
    await home.register()
    session = await home.log_in()
    made = await home.new_key(session, name="anns laptop")
    written = b"".join(await private_entries(home))
    for secret in (PASSWORD, EMAIL, "anns laptop", made.key, session.refresh_token):
        assert secret.encode() not in written
    assert decode_events((await private_entries(home))[0])
