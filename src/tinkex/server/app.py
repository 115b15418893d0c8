"""The ASGI application: services behind routes behind middleware.

Owns how these are stacked, and that services live as long as the application. Loads no model and
opens no socket.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from tinkex.server.auth import KeyRing, load_keys
from tinkex.server.bases import Bases, HostedBase
from tinkex.server.jobs import EngineJobs
from tinkex.server.logs import make_logger
from tinkex.server.middleware import Authentication, BodyReader, ErrorReplies, RequestId
from tinkex.server.routes.futures import FutureRoutes
from tinkex.server.routes.meta import MetaRoutes
from tinkex.server.routes.models import ModelRoutes
from tinkex.server.routes.runs import RunRoutes
from tinkex.server.routes.sampling import SamplingRoutes
from tinkex.server.routes.sessions import SessionRoutes
from tinkex.server.routes.sharing import SharingRoutes
from tinkex.server.routes.training import TrainingRoutes
from tinkex.server.routes.weights import WeightsRoutes
from tinkex.server.services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from tinkex._clock import Clock
    from tinkex.engine.engine import Engine
    from tinkex.server.config import ServerConfig
    from tinkex.server.logs import Logger

PREFIX = "/api/v1"


def build_app(
    config: ServerConfig,
    engines: Mapping[str, Engine],
    *,
    clock: Clock,
    logger: Logger | None = None,
    keys: tuple[str, ...] | None = None,
) -> Starlette:
    """Make the application; `app.state.services` holds its parts.

    Args:
        config: the settings.
        engines: an engine for each base model, by the model's name.
        clock: tells and waits for time.
        logger: takes the log lines; None writes them to stderr.
        keys: the accepted API keys; None reads or makes them as `config` says.

    Raises:
        ConfigurationError: for bad keys or an alias of no base model.
    """
    logger = logger or make_logger(config.log_level)
    if keys is None:
        keys, _ = load_keys(config)
    services = _services(config, engines, clock=clock, logger=logger)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.stop()

    app = Starlette(
        routes=[Mount(PREFIX, routes=api_routes(services))],
        middleware=[
            Middleware(RequestId, clock=clock, logger=logger),
            Middleware(ErrorReplies, logger=logger),
            Middleware(Authentication, keys=KeyRing(keys)),
            Middleware(BodyReader, limits=config.limits),
        ],
        exception_handlers={404: _to_error_replies, 405: _to_error_replies},
        lifespan=lifespan,
    )
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
        SharingRoutes,
        RunRoutes,
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
    config: ServerConfig, engines: Mapping[str, Engine], *, clock: Clock, logger: Logger
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
        )
        for name, engine in engines.items()
    ]
    services = Services(config, Bases(hosted, config.aliases), clock=clock, logger=logger)
    return services


async def _to_error_replies(_request: Request, error: Exception) -> Response:
    """Hand Starlette's own 404 and 405 to the middleware that writes every error reply."""
    raise error
