"""`tinkex run`: the training runs of the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.output import Table
from tinkex.cli.paging import Shown, fetch_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex.client.rest import RestClient
    from tinkex.types import Checkpoint, TrainingRun

app = typer.Typer(
    help="List training runs and show them.", no_args_is_help=True, rich_markup_mode=None
)

_PAGE = 100


def _lora(run: TrainingRun) -> str:
    return f"Rank {run.lora_rank}" if run.is_lora and run.lora_rank else output.yes_no(run.is_lora)


def _checkpoint(run: TrainingRun) -> str:
    return run.last_checkpoint.checkpoint_id if run.last_checkpoint else "None"


def _checkpoint_time(run: TrainingRun) -> str:
    return output.moment(run.last_checkpoint.time if run.last_checkpoint else None)


_COLUMNS: dict[str, tuple[str, Callable[[TrainingRun], str]]] = {
    "id": ("Run ID", lambda run: run.training_run_id),
    "model": ("Base Model", lambda run: run.base_model),
    "owner": ("Owner", lambda run: run.model_owner),
    "lora": ("LoRA", _lora),
    "updated": ("Last Update", lambda run: output.moment(run.last_request_time)),
    "status": ("Status", lambda run: "Failed" if run.corrupted else "OK"),
    "checkpoint": ("Last Checkpoint", _checkpoint),
    "checkpoint_time": ("Checkpoint Time", _checkpoint_time),
}
_DEFAULT_COLUMNS = "id,model,lora,updated,status"


@app.command("list")
def list_runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="Runs at most; 0 lists all.", min=0)] = 20,
    columns: Annotated[
        str,
        typer.Option("--columns", "-c", help=f"Comma-separated, of {', '.join(_COLUMNS)}."),
    ] = _DEFAULT_COLUMNS,
) -> None:
    """List training runs, the newest first."""
    chosen = [name.strip() for name in columns.split(",")]
    unknown = [name for name in chosen if name not in _COLUMNS]
    if unknown:
        raise typer.BadParameter(
            f"no column {', '.join(unknown)}; there are {', '.join(_COLUMNS)}",
            param_hint="--columns",
        )
    options = invocation(context)
    with options.rest() as client:
        found = fetch_pages(lambda size, offset: _page(client, size, offset), limit, _PAGE)
    output.show(
        options.form,
        {"runs": [output.plain(run) for run in found.items]},
        Table(
            [_COLUMNS[name][0] for name in chosen],
            [[_COLUMNS[name][1](run) for name in chosen] for run in found.items],
            found.title("training run"),
        ),
    )


@app.command("info")
def info(
    context: typer.Context, run_id: Annotated[str, typer.Argument(help="Id of the run.")]
) -> None:
    """Show one training run."""
    options = invocation(context)
    with options.rest() as client:
        run = client.get_training_run(run_id).result()
    pairs = [
        ("Run ID", run.training_run_id),
        ("Base Model", run.base_model),
        ("Owner", run.model_owner),
        ("LoRA", lora_words(run)),
        ("Last Update", output.moment(run.last_request_time)),
        ("Status", "Failed" if run.corrupted else "OK"),
        *_last("Training", run.last_checkpoint),
        *_last("Sampler", run.last_sampler_checkpoint),
    ]
    if run.user_metadata:
        pairs += [("Metadata", "")]
        pairs += [(f"  - {name}", value) for name, value in run.user_metadata.items()]
    title = f"Training Run: {run.training_run_id}"
    output.show_properties(options.form, output.plain(run), title, pairs)


def lora_words(run: TrainingRun) -> str:
    """Say whether a run trains an adapter, and of which rank."""
    if not run.is_lora:
        return "No"
    return f"Yes (Rank {run.lora_rank})" if run.lora_rank else "Yes"


def _last(kind: str, checkpoint: Checkpoint | None) -> list[tuple[str, str]]:
    if checkpoint is None:
        return []
    return [
        (f"Last {kind} Checkpoint", checkpoint.checkpoint_id),
        ("  - Time", output.moment(checkpoint.time)),
        ("  - Path", checkpoint.tinker_path),
    ]


def _page(client: RestClient, size: int, offset: int) -> Shown[TrainingRun]:
    response = client.list_training_runs(limit=size, offset=offset).result()
    return Shown(response.training_runs, response.cursor.total_count)
