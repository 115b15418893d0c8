"""The ASGI application: services behind routes behind middleware.

Owns how these are stacked, and that services live as long as the application. Loads no model and
opens no socket.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount

from tinkex._logs import make_logger
from tinkex.server.accounts.auth_routes import AuthRoutes
from tinkex.server.accounts.browsers import BrowserGuard, SecurityHeaders
from tinkex.server.accounts.keys import given_key
from tinkex.server.accounts.operator_keys import load_keys
from tinkex.server.accounts.routes import AccountRoutes
from tinkex.server.accounts.scopes import guard
from tinkex.server.completer.routes import face_routes
from tinkex.server.durable.points import nothing
from tinkex.server.http.middleware import Authentication, BodyReader, ErrorReplies, RequestId
from tinkex.server.load.limited import RateHeaders, RateLimited
from tinkex.server.models.bases import Bases, HostedBase
from tinkex.server.models.jobs import EngineJobs
from tinkex.server.observe.requests import ObservedRequests
from tinkex.server.observe.routes import OperatorRoutes
from tinkex.server.openapi.operations import methods_at
from tinkex.server.openapi.routes import OpenApiRoutes
from tinkex.server.openapi.strict import refuse_what_is_not_taken
from tinkex.server.routes.access import AccessRoutes
from tinkex.server.routes.audit import AuditRoutes
from tinkex.server.routes.futures import FutureRoutes
from tinkex.server.routes.meta import MetaRoutes
from tinkex.server.routes.metrics import MetricsRoutes
from tinkex.server.routes.models import ModelRoutes
from tinkex.server.routes.runs import RunRoutes
from tinkex.server.routes.sampling import SamplingRoutes
from tinkex.server.routes.session_records import SessionRecordRoutes
from tinkex.server.routes.sessions import SessionRoutes
from tinkex.server.routes.sharing import SharingRoutes
from tinkex.server.routes.training import TrainingRoutes
from tinkex.server.routes.usage import UsageRoutes
from tinkex.server.routes.weights import WeightsRoutes
from tinkex.server.services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from tinkex._clock import Clock
    from tinkex._logs import Logger
    from tinkex.engine.engine import Engine
    from tinkex.server.accounts.keys import GivenKey
    from tinkex.server.config import ServerConfig
    from tinkex.server.observe.tracing import Tracing

PREFIX = "/api/v1"


def build_app(
    config: ServerConfig,
    engines: Mapping[str, Engine],
    *,
    clock: Clock,
    logger: Logger | None = None,
    keys: tuple[str, ...] | None = None,
    tracing: Tracing | None = None,
    reach: Callable[[str], None] = nothing,
) -> Starlette:
    """Make the application; `app.state.services` holds its parts.

    Args:
        config: the settings.
        engines: an engine for each base model, by the model's name.
        clock: tells and waits for time.
        logger: takes the log lines; None writes them to stderr.
        keys: the accepted API keys; None reads or makes them as `config` says.
        tracing: records spans; None does if the program has set up OpenTelemetry.
        reach: told of the points at which a test ends the process; see `durable.points`.

    Raises:
        ConfigurationError: for bad keys or an alias of no base model.
    """
    logger = logger or make_logger(config.log_level)
    if keys is None:
        keys, _ = load_keys(config)
    given = tuple(given_key(key) for key in dict.fromkeys(keys))
    services = _services(
        config, engines, given, clock=clock, logger=logger, tracing=tracing, reach=reach
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            await services.start()
        except BaseException as error:
            services.start_failure = error
            raise
        try:
            yield
        finally:
            await services.stop()

    app = Starlette(
        routes=[
            Mount(PREFIX, routes=api_routes(services)),
            *face_routes(services),
            *OpenApiRoutes().routes(),
            *OperatorRoutes(services).routes(),
        ],
        middleware=[
            Middleware(SecurityHeaders, config=config),
            Middleware(RequestId, clock=clock, logger=logger),
            Middleware(
                ObservedRequests, metrics=services.metrics, tracing=services.tracing, clock=clock
            ),
            Middleware(RateHeaders, gate=services.gate),
            Middleware(ErrorReplies, logger=logger),
            Middleware(BrowserGuard, config=config),
            Middleware(Authentication, authenticator=services.accounts.authenticator),
            Middleware(RateLimited, gate=services.gate),
            Middleware(BodyReader, limits=config.limits, intake=services.intake),
        ],
        exception_handlers={404: _to_error_replies, 405: _to_error_replies},
        lifespan=lifespan,
    )
    refuse_what_is_not_taken(app.routes)
    guard(app.routes, services.accounts.spending)
    app.state.services = services
    return app


def api_routes(services: Services) -> list[BaseRoute]:
    """List every endpoint, below the prefix."""
    groups = (
        MetaRoutes,
        SessionRoutes,
        ModelRoutes,
        TrainingRoutes,
        WeightsRoutes,
        SamplingRoutes,
        FutureRoutes,
        SessionRecordRoutes,
        SharingRoutes,
        AccessRoutes,
        AuditRoutes,
        MetricsRoutes,
        UsageRoutes,
        RunRoutes,
        AuthRoutes,
        AccountRoutes,
    )
    return [route for group in groups for route in group(services).routes()]


def client_tokenizer_id(name: str, tokenizer_id: str, *, local: bool) -> str:
    """Choose what a client is told to load a base model's tokenizer from.

    A folder is told only to clients on this machine, who can read it; to others it would be
    useless, and it would show the machine's folders. Clients cut the id at a colon, so a folder
    with one in its path is not told either.
    """
    if not tokenizer_id:
        return name
    if not Path(tokenizer_id).is_dir():
        return tokenizer_id
    folder = str(Path(tokenizer_id).resolve())
    return folder if local and ":" not in folder else name


def _services(
    config: ServerConfig,
    engines: Mapping[str, Engine],
    given_keys: Sequence[GivenKey],
    *,
    clock: Clock,
    logger: Logger,
    tracing: Tracing | None,
    reach: Callable[[str], None],
) -> Services:
    services: Services

    def fault(error: BaseException) -> None:
        services.fault(error)

    hosted = [
        HostedBase(
            name=name,
            jobs=EngineJobs(engine, name=name, clock=clock, on_fault=fault),
            architecture=engine.base.architecture,
            max_context_length=engine.context_length,
            hidden_size=engine.base.hidden_size,
            tokenizer_id=client_tokenizer_id(
                name, engine.base.tokenizer_id, local=config.listens_on_loopback
            ),
            tokenizer_location=engine.base.tokenizer_id,
            trust_remote_code=engine.base.trust_remote_code,
        )
        for name, engine in engines.items()
    ]
    bases = Bases(hosted, config.aliases)
    services = Services(
        config,
        bases,
        clock=clock,
        logger=logger,
        tracing=tracing,
        given_keys=given_keys,
        reach=reach,
    )
    return services


async def _to_error_replies(request: Request, error: Exception) -> Response:
    """Hand Starlette's own 404 and 405 to the middleware that writes every error reply.

    Starlette names the methods of the first route alone that has the path.
    """
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = methods_at(request.app.routes, request.url.path)
        raise HTTPException(error.status_code, headers={"Allow": ", ".join(sorted(methods))})
    raise error
