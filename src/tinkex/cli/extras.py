"""Tell a user of the client-only install what to install for the other rooms."""

from __future__ import annotations

from importlib.util import find_spec

from tinkex.errors import MissingPackageError

_SERVER_MODULES = ("torch", "transformers", "starlette", "uvicorn", "sqlalchemy", "aiosqlite")
_MESH_MODULES = (
    "argon2",
    "cryptography",
    "jwt",
    "msgspec",
    "prometheus_client",
    "starlette",
    "uvicorn",
)


def require_server_extra(command: str) -> None:
    """Check that the server's packages are installed.

    Raises:
        MissingPackageError: when one is missing; the message says how to install them.
    """
    missing = [name for name in _SERVER_MODULES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"`{command}` needs {', '.join(missing)}, which the client-only install leaves out. "
            "Install the server's packages: pip install 'tinkex[server]'"
        )


def missing_mesh_packages() -> list[str]:
    """List the mesh's packages that are not installed."""
    return [name for name in _MESH_MODULES if find_spec(name) is None]


def require_mesh_extra(command: str) -> None:
    """Check that the mesh's packages are installed.

    Raises:
        MissingPackageError: when one is missing; the message says how to install them.
    """
    missing = missing_mesh_packages()
    if missing:
        raise MissingPackageError(
            f"`{command}` needs {', '.join(missing)}, which the client-only install leaves out. "
            "Install the mesh's packages: pip install 'tinkex[mesh]'"
        )
