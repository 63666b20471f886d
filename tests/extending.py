"""Apply the worked examples of docs/extending.md to a copy of the code, and run it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def python_blocks(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def num_files(row: str) -> int:
    """Return the number of files that an addition takes, as the page's table says."""
    (number,) = re.findall(rf"^\| {re.escape(row)} \| (\d+):", PAGE, re.MULTILINE)
    return int(number)


def line_with(path: str, start: str) -> str:
    """The one line of a file that starts so, as something to replace."""
    (line,) = [line for line in (ROOT / path).read_text().splitlines(keepends=True) if line.startswith(start)]
    return line


class Extended:
    """A copy of the code with an example in it.

    Args:
        folder: for the copy.
        row: of the page's table, which must name as many files as the example changes.
        edits: for each file, pairs of a text that it holds once and of what replaces it; a file that is new has the one
            pair of an empty text and its content.
    """

    def __init__(self, folder: Path, row: str, edits: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        assert len(edits) == num_files(row)
        self.folder = folder / "extended"
        for package in ("pipeline", "jobs"):
            # With its bytecode, which holds for all files but those that are edited.
            shutil.copytree(ROOT / package, self.folder / package)
        for name, pairs in edits.items():
            path = self.folder / name
            text = path.read_text() if path.exists() else ""
            for old, new in pairs:
                assert text.count(old) == 1, f"{name} holds {text.count(old)} times: {old}"
                text = text.replace(old, new)
            path.write_text(text)

    def run(self, *arguments: str) -> str:
        """Run Python in the copy, and return what it prints."""
        # The tests come from here, and what they import from the copy.
        environment = {**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
