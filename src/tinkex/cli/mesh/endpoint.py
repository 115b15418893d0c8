"""The commands' way to the mesh: the local endpoint that a client worker serves.

Owns finding it, whose credential is sent, and reading its errors. The endpoint keeps no session:
`tinkex mesh login` keeps one in a file of its user's (`sessions`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.mesh.places import find_ready, mesh_dir
from tinkex.cli.mesh.sessions import (
    KeptSession,
    Place,
    check_room,
    delete_session,
    not_cut_off,
    read_session,
    renewing,
    write_session,
)
from tinkex.errors import (
    APIConnectionError,
    AuthenticationError,
    ConfigurationError,
    CredentialError,
    InputError,
    status_error,
)

if TYPE_CHECKING:
    import httpx

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TINKEX_MESH_URL",
        help="The local endpoint; default: that of the `tinkex mesh up` or `client` that runs.",
    ),
]
RENEW_S = 150.0
"""An access token that lasts no longer than this is renewed before it is used: three clocks, each
up to a minute apart from the next, tell when it ends."""
ANSWER_S = 120.0
_KEY_VARIABLE = "TINKEX_MESH_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint, and what is known of its user."""

    url: str
    """Without `/v1`."""
    api_key: str | None
    folder: Path
    network: str | None = None
    """Id of its network, where the ready file of what runs there says it."""

    @property
    def place(self) -> Place:
        """What a session is bound to."""
        return Place(self.url, self.network)

    @contextmanager
    def http(self) -> Iterator[httpx.Client]:
        """Open a connection.

        Raises:
            ConfigurationError: the URL is none.
        """
        import httpx

        try:
            client = httpx.Client(base_url=self.url, timeout=ANSWER_S, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{self.url!r} is no URL ({error}): give another") from error
        with client:
            yield client

    def request(
        self,
        client: httpx.Client,
        verb: str,
        path: str,
        *,
        credential: str | None = None,
        **parts: Any,
    ) -> httpx.Request:
        """Write a request, to be sent by `client`.

        Raises:
            InputError: it has what no request can hold.
        """
        import httpx

        headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
        try:
            return client.build_request(verb, path, headers=headers, **parts)
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(
                f"this cannot be sent ({error}): numbers are finite, text is UTF-8, keys are ASCII"
            ) from error

    def ask(self, verb: str, path: str, *, credential: str | None = None, **parts: Any) -> Any:
        """Send a request; return the JSON of its reply.

        Raises:
            APIStatusError: the answer is an error.
            APIConnectionError: nobody answers.
            InputError: see `request`.
        """
        import httpx

        try:
            with self.http() as client:
                asked = self.request(client, verb, path, credential=credential, **parts)
                reply = client.send(asked)
        except httpx.HTTPError as error:
            raise APIConnectionError(
                f"Nobody answers at {self.url} ({error}): start `tinkex mesh up` or `tinkex mesh "
                "client`, or give another --url."
            ) from error
        return answer_of(reply)

    def access_token(self) -> str:
        """Return the user's access token, renewed if it is about to end.

        Raises:
            CredentialError: nobody is logged in, or somewhere else.
            AuthenticationError: the session has ended.
        """
        kept = self._session()
        if _is_about_to_end(kept):
            # A refresh token works once, and a second use ends the session: one command at a time.
            with renewing(self.folder):
                kept = self._session()
                if _is_about_to_end(kept):
                    with not_cut_off():
                        kept = KeptSession(self._renewed(kept))
        return str(kept.fields["access_token"])

    def _session(self) -> KeptSession:
        kept = read_session(self.folder)
        if kept is None:
            raise CredentialError("you are not logged in: run `tinkex mesh login`")
        if not kept.is_of(self.place):
            raise CredentialError(
                f"you are not logged in at {self.url}: the session that is kept is of "
                f"{kept.source}, and is sent to no other network; run `tinkex mesh login` here"
            )
        return kept

    def _renewed(self, kept: KeptSession) -> dict[str, Any]:
        check_room(self.folder, kept)  # what comes cannot be had a second time
        body = {"refresh_token": kept.fields["refresh_token"]}
        try:
            session: dict[str, Any] = self.ask("POST", "/mesh/refresh", json=body)
        except AuthenticationError as error:
            raise AuthenticationError(
                f"{self.url} does not go on with your session ({error}): run `tinkex mesh "
                "login`, or `tinkex mesh logout` to go on without one"
            ) from error
        # What was known of its network stays known where no ready file says it just now.
        write_session(self.folder, session, Place(self.url, self.network or kept.network))
        return session

    def credential(self) -> str:
        """Return the API key, or else the access token.

        Raises:
            CredentialError: there is neither, for this endpoint.
            AuthenticationError: the session has ended.
        """
        return self.api_key or self.access_token()

    def keep_session(self, session: dict[str, Any]) -> None:
        """Remember a session for later commands."""
        write_session(self.folder, session, self.place)

    def forget_session(self) -> None:
        """Forget it."""
        delete_session(self.folder)


def find_endpoint(url: str | None, data_dir: Path | None) -> Endpoint:
    """Find the endpoint, and the key for it.

    The environment's key goes before a session, and a session before the key of the ready file:
    who has logged in acts, not the account of what happens to run here. A session of another
    network or endpoint is none here.

    Raises:
        ConfigurationError: none is given, and none runs.
    """
    folder = mesh_dir(data_dir)
    key = os.environ.get(_KEY_VARIABLE) or None
    if url is not None:
        url = url.rstrip("/").removesuffix("/v1")
    ready = find_ready(folder, ("client",), url=url)
    if url is None:
        if ready is None:
            raise ConfigurationError(
                f"no endpoint of the mesh runs in {folder}: start `tinkex mesh up` or `tinkex mesh "
                "client`, or give --url"
            )
        url = str(ready["url"])
    found = Endpoint(url, key, folder, None if ready is None else ready.get("network_id"))
    own_key = None if ready is None else ready.get("api_key")
    if key is None and own_key is not None and not _logged_in(found):
        found = replace(found, api_key=own_key)
    return found


def find_caller(url: str | None, data_dir: Path | None) -> Endpoint:
    """Find the endpoint for what API keys are good for, too; says where no login of yours acts.

    Raises:
        ConfigurationError: see `find_endpoint`.
    """
    found = find_endpoint(url, data_dir)
    if found.api_key is not None and not os.environ.get(_KEY_VARIABLE):
        kept = read_session(found.folder)
        if kept is not None:
            output.remark(
                f"you are logged in at {kept.source}, which is another network: the account of "
                "what runs here acts"
            )
    return found


def _logged_in(endpoint: Endpoint) -> bool:
    """Whether the kept session acts here. One that cannot be read is told where it is used."""
    try:
        kept = read_session(endpoint.folder)
    except ConfigurationError:
        return True
    return kept is not None and kept.is_of(endpoint.place)


def _is_about_to_end(kept: KeptSession) -> bool:
    from tinkex._clock import SystemClock

    return bool(kept.fields["access_expires_at"] - RENEW_S <= SystemClock().now())


def answer_of(reply: httpx.Response) -> Any:
    """Return the JSON of a reply.

    Raises:
        APIStatusError: it is an error.
    """
    try:
        content = reply.json()
    except ValueError:
        content = None
    if reply.is_success and content is not None:
        return content
    told = content.get("error") if isinstance(content, dict) else None
    told = told if isinstance(told, dict) else {}
    message = told.get("message") or reply.text[:500] or "no reason was given"
    after = reply.headers.get("retry-after-ms", "")
    raise status_error(
        reply.status_code,
        message,
        body=told,
        retry_after_ms=float(after) if after.isdecimal() else None,
    )
