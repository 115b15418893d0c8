"""Ask at the terminal for what must not be seen."""

from __future__ import annotations


def hidden(what: str, *, twice: bool = False) -> str:
    """Ask for a secret, beside standard output; Ctrl-C ends the command as anywhere else.

    Args:
        what: names it.
        twice: ask until the same was typed twice: nobody sees what was typed.
    """
    from getpass import getpass

    from tinkex.cli.output import remark

    while True:
        typed = getpass(f"{what}: ")
        if not twice or getpass(f"{what} again: ") == typed:
            return typed
        remark("The two are not the same. Once more:")
