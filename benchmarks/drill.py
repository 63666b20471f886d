"""Run a drill of faults: keep its folder where something went wrong, and print its result as a line."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser without flags whose help is the text of a module."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def drill(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Path], Result],
    is_right: Callable[[Result], bool],
    argv: Sequence[str] | None = None,
) -> int:
    """Measure, and print the result as a JSON line.

    Args:
        parser: of the flags.
        measure: takes the flags and an empty folder, and returns plain data. The folder is deleted if all went right.
        is_right: returns whether a result is as it should be.
        argv: the flags; by default those of this process.

    Returns:
        The exit code.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options, folder, right = parser.parse_args(argv), Path(tempfile.mkdtemp(prefix="drill-")), False
    try:
        result = measure(options, folder)
        right = is_right(result)
    finally:
        if right:
            shutil.rmtree(folder)
        else:
            print(f"the logs are in {folder}", file=sys.stderr)
    print(json.dumps(result), flush=True)
    return 0 if right else 1
