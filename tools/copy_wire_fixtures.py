"""Copy recorded traffic into the test fixtures, leaving out the texts that are not ours.

    python tools/copy_wire_fixtures.py FOLDER_OF_RECORDINGS

What stays: the case, the SDK, the call, the exchanges, and what the SDK made of them. The SDK's own
error messages and the recorder's notes stay behind: our messages are our own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TARGET = Path(__file__).parent.parent / "tests" / "support" / "fixtures" / "wire"
LEFT_OUT = ("sdk_error", "note", "elapsed_s")


def main() -> None:
    source = Path(sys.argv[1])
    copied = 0
    for path in sorted(source.rglob("*.json")):
        if path.name.startswith("_"):
            continue
        recording = json.loads(path.read_bytes())
        for name in LEFT_OUT:
            recording.pop(name, None)
        target = TARGET / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
        copied += 1
    print(f"{copied} recordings copied to {TARGET.name}/")


if __name__ == "__main__":
    main()
