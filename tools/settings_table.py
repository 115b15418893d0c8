"""Write the tables of settings into docs/guides/server-settings.md and mesh-settings.md.

    python tools/settings_table.py

A test compares the pages with what this writes.
"""

from __future__ import annotations

from pathlib import Path

from tinkex.cli.mesh.settings import mesh_schema
from tinkex.cli.server_settings import server_schema

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
BEGIN = "<!-- begin: python tools/settings_table.py -->\n"
END = "<!-- end -->\n"


def main() -> None:
    for name, table in (
        ("server-settings.md", server_schema().table()),
        ("mesh-settings.md", mesh_schema().table()),
    ):
        page = GUIDES / name
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
