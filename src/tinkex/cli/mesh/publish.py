"""`tinkex mesh publish|unpublish`: adapters that were trained become models of the network."""

from __future__ import annotations

import json
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import Invocation, invocation
from tinkex.cli.mesh.endpoint import Url, find_caller
from tinkex.cli.mesh.places import DataDir, with_place
from tinkex.errors import InputError

FILES = ("adapter_config.json", "adapter_model.safetensors", "tinkex.json")


def publish(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="tinker://RUN/sampler_weights/NAME, or a folder.")],
    name: Annotated[
        str | None, typer.Option(help="What it is asked for by; default: the checkpoint's name.")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Everybody may use it; else your account alone.")
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Publish an adapter to the mesh: processors fetch its files from this machine.

    A tinker:// path is downloaded from the training server of TINKEX_BASE_URL first.
    """
    endpoint = find_caller(url, data_dir)
    credential = endpoint.credential()
    name = name or source.rstrip("/").rpartition("/")[2]
    with _adapter(invocation(context), source) as folder, tempfile.TemporaryFile() as archive:
        base_model = _base_model(folder, source)
        _pack(folder, archive)
        archive.seek(0)
        sent = endpoint.ask("POST", "/mesh/files", credential=credential, content=archive)
    body = {
        "name": name,
        "base_model": base_model,
        "content": sent["content"],
        "shared": shared,
    }
    made = endpoint.ask("POST", "/mesh/adapters", credential=credential, json=body)
    pairs = [
        ("Name", made["name"]),
        ("Base model", base_model),
        ("Content", made["content"]),
        ("For", "everybody" if shared else "your account"),
        ("Try it", with_place(context, f"tinkex mesh chat {shlex.quote(made['name'])}")),
    ]
    value = {**made, "base_model": base_model, "shared": shared}
    output.show_properties(invocation(context).form, value, f"Published: {source}", pairs)


def unpublish(
    name: Annotated[str, typer.Argument(help="As it was published.")],
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Take an adapter back: it is no model of the network any more."""
    endpoint = find_caller(url, data_dir)
    endpoint.ask("DELETE", f"/mesh/adapters/{name}", credential=endpoint.credential())
    output.remark(f"{name} is published no more")


@contextmanager
def _adapter(options: Invocation, source: str) -> Iterator[Path]:
    """Give a folder with the adapter's files.

    Raises:
        InputError: it is neither a checkpoint for sampling nor a folder.
    """
    if Path(source).is_dir():
        yield Path(source)
        return
    from tinkex.client.download import fetch_file
    from tinkex.types import ParsedCheckpointTinkerPath

    parsed = ParsedCheckpointTinkerPath.from_tinker_path(source)
    if parsed.checkpoint_type != "sampler":
        raise InputError(
            f"{source} is no checkpoint for sampling: publish tinker://RUN/sampler_weights/NAME, "
            "which save_weights_for_sampler makes, or a folder with one"
        )
    with tempfile.TemporaryDirectory(prefix="tinkex-") as temporary:
        folder = Path(temporary)
        with options.rest() as rest:
            url = rest.get_checkpoint_archive_url_from_tinker_path(source).result().url
        fetch_file(url, folder / "archive")
        with tarfile.open(folder / "archive", "r:*") as tar:
            for entry in tar:
                name = Path(entry.name).name
                content = tar.extractfile(entry) if name in FILES and entry.isreg() else None
                if content is not None:
                    with (folder / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
        yield folder


def _base_model(folder: Path, source: str) -> str:
    try:
        told: Any = json.loads((folder / "tinkex.json").read_text(encoding="utf-8"))
        return str(told["base_model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source} has no tinkex.json that names its base model: publish a checkpoint that a "
            "tinkex server saved for sampling"
        ) from error


def _pack(folder: Path, archive: IO[bytes]) -> None:
    with tarfile.open(fileobj=archive, mode="w:") as tar:
        for name in FILES:
            tar.add(folder / name, arcname=name)
