"""Every operation of an application: its routes joined with the messages of the wire's table.

Owns finding them. What they look like in the document is `document`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.routing import Mount, Route, compile_path

from tinkex.server.openapi.describe import ATTRIBUTE, JSON, Description, Media
from tinkex.wire.endpoints import ALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute

    from tinkex.wire.endpoints import Endpoint

_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")
UNLISTED_METHODS = frozenset({"HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """As Starlette has it, with the prefixes of its mounts."""
    route: Route
    description: Description | None
    """None: neither the wire's table nor the route says what it takes and gives."""
    endpoint: Endpoint[Any] | None
    """Its row in the wire's table."""

    @property
    def template(self) -> str:
        """The path as OpenAPI has it."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Names in the path, and Starlette's converter of each."""
        return [(name, kind or "str") for name, kind in _PARAMETER.findall(self.path)]

    @property
    def summary(self) -> str:
        """The first paragraph of the handler's docstring."""
        return self.text.partition("\n\n")[0].replace("\n", " ")

    @property
    def text(self) -> str:
        """The handler's docstring."""
        return inspect.getdoc(self.route.endpoint) or ""

    @property
    def group(self) -> str:
        """What the routes beside it are about, from their class's name."""
        owner = type(getattr(self.route.endpoint, "__self__", None)).__name__
        return "server" if owner == "NoneType" else _words(owner.removesuffix("Routes"))

    @property
    def operation_id(self) -> str:
        """A name that no other operation has."""
        if self.endpoint is not None:
            return self.endpoint.name
        name = re.sub(r"\W+", "_", self.template).strip("_")
        return f"{self.method.lower()}_{name}"

    @property
    def request_media(self) -> tuple[Media, ...]:
        """The forms of its body; none where it takes no body."""
        return _media(self._said.request)

    @property
    def response_media(self) -> tuple[Media, ...]:
        """The forms of its reply."""
        return _media(self._said.response)

    @property
    def _said(self) -> Description:
        return self.description or Description()


def operations(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[Operation]:
    """List every operation below some routes, in their order.

    Raises:
        TypeError: for a route of a kind that cannot be described: let a Route or Mount hold it.
    """
    for route in routes:
        if isinstance(route, Mount) and route.routes:
            yield from operations(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            for method in sorted((route.methods or set()) - UNLISTED_METHODS):
                yield _operation(route, method, prefix + route.path)
        else:
            raise TypeError(f"{prefix}{getattr(route, 'path', route)} cannot be described")


def methods_at(routes: Iterable[BaseRoute], path: str) -> set[str]:
    """Return the methods that some routes answer at a path."""
    return {
        operation.method
        for operation in operations(routes)
        if compile_path(operation.path)[0].match(path)
    }


def _operation(route: Route, method: str, path: str) -> Operation:
    said: Description | None = getattr(route.endpoint, ATTRIBUTE, None)
    row = _ROWS.get((method, _PARAMETER.sub("{}", path)))
    if row is not None:
        said = Description(
            request=row.request if said is None or said.request is None else said.request,
            response=row.response if said is None or said.response is None else said.response,
            **({} if said is None else _rest_of(said)),
        )
    return Operation(method, path, route, said, row)


def _rest_of(said: Description) -> dict[str, Any]:
    return {
        "query": said.query,
        "status": said.status,
        "unread": said.unread,
        "error": said.error,
        "faults": said.faults,
    }


def _media(said: Any) -> tuple[Media, ...]:
    if said is None:
        return ()
    return said if isinstance(said, tuple) else (Media(JSON, said),)


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


# The wire's `checkpoint_id` holds a slash.
_ROWS = {
    (row.method, _PARAMETER.sub("{}", row.path.replace("{checkpoint_id}", "{kind}/{name}"))): row
    for row in ALL
}
