"""Extracts the English prose that `tinkex/sprout` is pre-trained on, and reads it back.

Owns `prose.txt.xz`. The text is Python's own documentation as the standard library carries it:
`pydoc_data.topics` and the docstrings of the library's modules (PSF licence, in LICENSE.PSF).
Extraction ran once and its result is committed, so a rebuild does not depend on the interpreter.

    python tools/sprout/prose.py            # extract again, with the running interpreter
"""

import ast
import inspect
import lzma
import re
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

PROSE = Path(__file__).with_name("prose.txt.xz")
_SKIPPED = {"test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo", "__pycache__"}
_MARKUP = re.compile(r"(?m)^\s*(\.\. |:\w+.*:|>>> |\.\.\. |#|\* \* \*|[=*~^-]{3,})")
_SENTENCE = re.compile(r"^[A-Z\"'].*[.!?:]$", re.DOTALL)


def read_prose() -> list[str]:
    """Return the shipped paragraphs."""
    return lzma.decompress(PROSE.read_bytes()).decode().split("\n")


def documents() -> Iterator[str]:
    """Yield every documentation text of the running interpreter's standard library."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED & set(path.relative_to(root).parts):
            yield from docstrings(path)


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of one module, its classes and its functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text that are prose, each as one line."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        indents = {len(line) - len(line.lstrip()) for line in block.splitlines()}
        line = re.sub(r"\s+", " ", block).strip()
        if len(indents) <= 2 and not _MARKUP.search(block) and is_prose(line):
            yield line


def is_prose(line: str) -> bool:
    """Tell whether a line reads as English sentences, and not as code, a table or a signature."""
    letters = sum(char.isalpha() or char in " ,.'" for char in line)
    return (
        len(line) > 60
        and line.isascii()
        and bool(_SENTENCE.match(line))
        and letters / len(line) > 0.93
        and len(line.split()) > 9
    )


def extract() -> None:
    """Write `prose.txt.xz` from the running interpreter's library, without repetitions."""
    unique = dict.fromkeys(line for text in documents() for line in paragraphs(text))
    data = "\n".join(unique).encode()
    PROSE.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(unique)} paragraphs, {len(data)} bytes, {PROSE.stat().st_size} compressed")


if __name__ == "__main__":
    extract()
