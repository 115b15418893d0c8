"""`tinkex demo`: parses its options and runs `tinkex.demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the server's data and the two adapters.")
    ] = Path(".demo"),
    part: Annotated[
        str, typer.Option(help="Which part to run: supervised, reinforcement or both.")
    ] = "both",
    seed: Annotated[int, typer.Option(help="Seeds the order of the data and the sampling.")] = 0,
) -> None:
    """Start a server, fine-tune two adapters through the API, sample before and after."""
    from tinkex.cli.extras import require_server_extra

    require_server_extra("tinkex demo")
    from tinkex.demo.reinforcement import ReinforcementSettings
    from tinkex.demo.run import DemoSettings, run
    from tinkex.demo.supervised import SupervisedSettings

    if part not in {"supervised", "reinforcement", "both"}:
        raise typer.BadParameter("choose supervised, reinforcement or both", param_hint="--part")
    run(
        DemoSettings(
            output=output,
            supervised=SupervisedSettings(seed=seed) if part != "reinforcement" else None,
            reinforcement=ReinforcementSettings(seed=seed) if part != "supervised" else None,
        )
    )
