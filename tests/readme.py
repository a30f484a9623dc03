"""Runs every shell command of a document's ``sh`` blocks: ``python -m tests.readme README.md``.

``make`` targets that CI runs by themselves are passed over.
"""

import re
import subprocess
import sys
from pathlib import Path

PASSED_OVER = ("make quickstart", "make test", "make setup", "make lint", "make bench")


def commands(text: str) -> list[str]:
    """The commands, comments cut off."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line not in PASSED_OVER]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for command in commands(Path(name).read_text()):
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, check=True)
