"""What can be called: classes whose `rpc_*` methods are marked with who may call them.

Owns the marking and what is read from the annotations. Moves nothing: `rpc.peers` does.
"""

from __future__ import annotations

import inspect
import re
import typing
from abc import ABC
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from tinkex.mesh.roles import CERTIFIED, Role

if TYPE_CHECKING:
    from tinkex.mesh.identity import PeerId
    from tinkex.mesh.trust.certificates import RoleCertificate

F = TypeVar("F", bound=Callable[..., Any])

_PREFIX = "rpc_"
_ROLES = "_rpc_roles"
_SERVICE = "_rpc_service"
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Call(msgspec.Struct, frozen=True):
    """Who calls, and how long they wait."""

    peer: PeerId
    """Proven by the transport."""
    certificate: RoleCertificate | None
    """Its role certificate, checked; None for a guest that wants to join."""
    deadline: float
    """Monotonic seconds of this peer's clock after which nobody waits for the answer."""
    trace: str = ""
    """The caller's W3C `traceparent`, or nothing."""

    @property
    def role(self) -> Role | None:
        """The caller's certified role; None for a guest."""
        return None if self.certificate is None else self.certificate.role


class Unhurried(msgspec.Struct, frozen=True, array_like=True):
    """Base of a stream's items that say little by themselves.

    Such an item may wait for the next one to go with it, for `RpcConfig.unhurried_s`. Where that
    comes soon, this saves both peers a message.
    """


class Hurried(msgspec.Struct, frozen=True, array_like=True):
    """Base of a stream's items that leave at once: nothing that comes soon is worth waiting for.

    Others leave at the end of their turn of the event loop, with all that is ready then.
    """


class Last(Hurried, frozen=True, array_like=True):
    """Base of items after which a stream has none: its end goes with it.

    What the handler does after it, nobody waits for, and nobody hears how it went.
    """


class Service(ABC):
    """Base of what can be called. A subclass marks each `rpc_*` method with `callable_by`.

    They are abstract in the class that declares them. A method takes `(request: Struct, call:
    Call)` and is either a coroutine function that returns a Struct (unary), or an async generator
    function annotated `AsyncIterator[Struct]` (streamed). It begins where the request comes: until
    it first waits it runs in no task, and what needs one awaits `tasks.own_task` before.
    """

    service: ClassVar[str]
    """Its name on the wire."""
    offered_by: ClassVar[frozenset[Role]] = CERTIFIED
    """Roles that offer it: a peer of another role is never asked, so it learns nothing."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Tell each method that is declared here whose it is.

        Raises:
            TypeError: the class has no `service`.
        """
        super().__init_subclass__(**options)
        if not isinstance(getattr(cls, "service", None), str):
            raise TypeError(f"{cls.__qualname__} must say its `service` name")
        for name, function in vars(cls).items():
            if name.startswith(_PREFIX) and hasattr(function, _ROLES):
                setattr(function, _SERVICE, (cls.service, cls.offered_by))


def callable_by(roles: Collection[Role], *, guests: bool = False) -> Callable[[F], F]:
    """Mark an `rpc_*` method: certified peers of these roles may call it, and guests if allowed."""

    def mark(method: F) -> F:
        setattr(method, _ROLES, (frozenset(roles), guests))
        return method

    return mark


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of one `rpc_*` method."""

    service: str
    name: str
    """Without the prefix."""
    request: type[msgspec.Struct]
    response: Any
    """A Struct, or a union of tagged ones."""
    streamed: bool
    roles: frozenset[Role]
    guests: bool
    offered_by: frozenset[Role]

    @property
    def path(self) -> str:
        """`service.method`, as on the wire."""
        return f"{self.service}.{self.name}"


def method_of(function: Callable[..., Any]) -> Method:
    """Describe a method of a `Service` class, given as `TheService.rpc_name`.

    Raises:
        TypeError: it is not marked, or not annotated as `Service` says.
    """
    if not hasattr(function, _SERVICE):
        raise TypeError(
            f"{function.__qualname__} is no rpc_* method of a Service, marked with callable_by"
        )
    hints = typing.get_type_hints(function)
    response = hints.pop("return", None)
    parameters = list(inspect.signature(function).parameters)
    request = hints.get(parameters[1]) if len(parameters) == 3 else None
    if not (inspect.isclass(request) and issubclass(request, msgspec.Struct)):
        raise TypeError(f"{function.__qualname__} must take (request: Struct, call: Call)")
    streamed = typing.get_origin(response) is AsyncIterator
    if streamed:
        (response,) = typing.get_args(response)
    if streamed is inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{function.__qualname__} must be a coroutine function, or an async generator function "
            "annotated AsyncIterator"
        )
    roles, guests = getattr(function, _ROLES)
    name = function.__name__.removeprefix(_PREFIX)
    service, offered_by = getattr(function, _SERVICE)
    return Method(service, name, request, response, streamed, roles, guests, offered_by)


def is_trace(text: str) -> bool:
    """Whether a text is a W3C `traceparent` (Trace Context, section 3.2)."""
    return _TRACE.fullmatch(text) is not None


def methods_of(service: type[Service]) -> dict[str, Callable[..., Any]]:
    """The marked methods of a service class, by path; those that a subclass overrides once.

    Raises:
        TypeError: an `rpc_*` method is not marked anywhere in the class's bases.
    """
    found: dict[str, Callable[..., Any]] = {}
    for name, _ in inspect.getmembers(service, callable):
        if not name.startswith(_PREFIX):
            continue
        declared = [
            vars(base)[name]
            for base in service.__mro__
            if name in vars(base) and hasattr(vars(base)[name], _ROLES)
        ]
        if not declared:
            raise TypeError(f"{service.__qualname__}.{name} is not marked with callable_by")
        found[method_of(declared[-1]).path] = declared[-1]
    return found
