"""`tinkex model`: the base models of the server."""

from __future__ import annotations

from typing import Annotated

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.output import Table

app = typer.Typer(
    help="List the base models of the server.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_models(
    context: typer.Context,
    substring: Annotated[
        str | None, typer.Argument(help="Only those whose name has this in it, in any case.")
    ] = None,
) -> None:
    """List the base models that can be trained or sampled."""
    from tinkex.errors import InputError

    options = invocation(context)
    with options.rest() as client:
        models = client.get_server_capabilities().result().supported_models
    if substring is not None:
        wanted = substring.lower()
        models = [model for model in models if wanted in (model.model_name or "").lower()]
        if not models:
            raise InputError(
                f"No base model of the server has {substring!r} in its name. "
                "`tinkex model list` shows all of them."
            )
    output.show(
        options.form,
        {"models": [output.plain(model) for model in models]},
        Table(
            ("Model", "Max Context", "Trainable", "Sampleable"),
            [
                [
                    model.model_name or output.MISSING,
                    str(model.max_context_length or output.MISSING),
                    output.yes_no(model.trainable),
                    output.yes_no(model.sampleable),
                ]
                for model in models
            ],
        ),
    )
