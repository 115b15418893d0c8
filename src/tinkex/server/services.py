"""The parts of one server, put together.

Owns which part gets which, what happens when a session ends, and the order of starting and
stopping. Holds everything a server has: two servers in one process share nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import EngineError, TinkerError
from tinkex.server.blobs import Blobs
from tinkex.server.checkpoints import Checkpoints
from tinkex.server.creation import Creation
from tinkex.server.custom_losses import CustomLosses
from tinkex.server.futures import FutureStore
from tinkex.server.recordings import Recordings
from tinkex.server.runs import Runs
from tinkex.server.samplers import Samplers
from tinkex.server.sampling import Sampling
from tinkex.server.saving import Saving
from tinkex.server.sessions import SessionRegistry
from tinkex.server.sharing import Sharing
from tinkex.server.signed_urls import SECRET_NAME, SignedUrls
from tinkex.server.store import Store
from tinkex.server.submissions import Submissions
from tinkex.server.tasks import Tasks
from tinkex.server.timers import Timers
from tinkex.server.training import Training

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock
    from tinkex.server.bases import Bases
    from tinkex.server.config import ServerConfig
    from tinkex.server.logs import Logger
    from tinkex.server.runs import RunRequest, TrainingRun
    from tinkex.server.sessions import Session, SessionEnd

DATABASE_NAME = "tinkex.sqlite3"
CHECKPOINTS_NAME = "checkpoints"


class Services:
    """Everything behind the routes.

    Args:
        config: the settings.
        bases: the base models; their engines start and stop with this.
        clock: tells and waits for time.
        logger: takes the log lines.
    """

    def __init__(self, config: ServerConfig, bases: Bases, *, clock: Clock, logger: Logger) -> None:
        self.config = config
        self.bases = bases
        self.clock = clock
        self.logger = logger
        self.stopping = False
        """Whether long polls are to end at once."""
        limits = config.limits
        self.timers = Timers(clock, on_error=self.fault)
        self.tasks = Tasks(on_error=self.fault)
        self.store = Store(config.data_dir / DATABASE_NAME)
        self.blobs = Blobs(config.data_dir / CHECKPOINTS_NAME)
        self.futures = FutureStore(
            self.timers,
            delivered_ttl_s=config.delivered_ttl_s,
            undelivered_ttl_s=config.undelivered_ttl_s,
            max_open=limits.max_open_futures,
            max_request_bytes=limits.max_queued_bytes,
            max_result_bytes=limits.max_result_bytes,
        )
        self.sessions = SessionRegistry(
            clock,
            self.timers,
            ttl_s=config.session_ttl_s,
            max_sessions=limits.max_sessions,
            on_end=self._session_ended,
        )
        self.runs = Runs(session_ttl_s=config.session_ttl_s)
        self.samplers = Samplers()
        self.recordings = Recordings(
            clock,
            self.timers,
            ttl_s=config.recording_ttl_s,
            max_bytes=limits.max_recorded_bytes,
        )
        self.checkpoints = Checkpoints(
            self.store, self.blobs, clock=clock, timers=self.timers, tasks=self.tasks
        )
        self.submissions = Submissions(self.runs, self.futures, self.sessions)
        self.creation = Creation(self)
        self.training = Training(self)
        self.custom_losses = CustomLosses(self)
        self.saving = Saving(self)
        self.signed_urls = SignedUrls(
            config.data_dir / SECRET_NAME, clock=clock, lifetime_s=config.signed_url_ttl_s
        )
        self.sharing = Sharing(self)
        self.sampling = Sampling(self)

    async def start(self) -> None:
        """Open the database and start the engines' threads."""
        self.config.data_dir.mkdir(parents=True, exist_ok=True)
        self.timers.start()
        self.signed_urls.open()
        await self.store.open()
        await self.checkpoints.start()
        for base in self.bases:
            base.jobs.start()

    def begin_stop(self) -> None:
        """Send every waiting long poll home; new ones return at once."""
        self.stopping = True
        self.futures.wake_all()
        self.samplers.wake_all()

    async def stop(self) -> None:
        """Stop the engines after the slice that they are in, and close the database."""
        self.begin_stop()
        error = EngineError("The server is stopping. Start it again, and repeat the call.")
        for run in self.runs.clear():
            run.abandon(error)
        for base in self.bases:
            await base.jobs.stop()
        self.futures.fail_all(error)
        await self.tasks.stop()
        await self.timers.stop()
        await self.store.close()

    def fault(self, error: BaseException) -> None:
        """Log an exception that is a bug or a broken machine, not an answer. Safe in any thread."""
        self.logger.error("fault", exc_info=error)

    def perform(self, request: RunRequest, ended: Callable[[], None]) -> None:
        """Carry out a training run's request in the background."""
        name = request.future.operation.value
        self.tasks.spawn(self._perform(request, ended), name=f"{name} {request.future.request_id}")

    def end_run(self, run: TrainingRun, error: TinkerError) -> None:
        """Fail a run's unfinished requests and free its adapter."""
        self.runs.remove(run.model_id)
        run.close(error)
        self.tasks.spawn(
            self.store.touch_run(run.model_id, run.last_request_at), name="note last request"
        )

    async def _perform(self, request: RunRequest, ended: Callable[[], None]) -> None:
        future = request.future
        try:
            answer = await request.perform()
            future.complete(answer.result, size=answer.size)
        except TinkerError as error:
            future.fail(error)
        except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
            self.fault(error)
            future.fail(
                EngineError(
                    f"The server failed in this request ({type(error).__name__}); its log has the "
                    "details. Send it again, or report it."
                )
            )
        finally:
            future.fail(EngineError("The server stopped before this request was done."))
            ended()

    def _session_ended(self, session: Session, how: SessionEnd) -> None:
        self.logger.info("session ended", session_id=session.session_id, how=how.value)
        for sampler_id in list(session.sampler_ids.values()):
            self.sampling.end(sampler_id)
        for model_id in list(session.model_ids.values()):
            run = self.runs.find(session.owner, model_id)
            if run is not None:
                self.end_run(run, self.runs.missing(model_id))
        self.recordings.end_session(session.session_id)
        self.tasks.spawn(
            self.store.end_session(
                session.session_id,
                status=how.value,
                reason=session.reason,
                detail=session.detail,
                at=self.clock.now(),
            ),
            name="note session end",
        )
