"""What every entry point does: parse its config, run, print one JSON line, turn our errors into one line."""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.config import parse_config
from pipeline.errors import PipelineError

C = TypeVar("C")


def run_job(
    name: str, config_class: type[C], job: Callable[[C], dict[str, Any]], argv: Sequence[str] | None = None
) -> int:
    """Run a job and return its exit code: 0 only if everything is done.

    Args:
        name: as in `python -m jobs.NAME`.
        config_class: what `--config` and the flags are parsed to.
        job: does the work and returns what the one JSON line on standard output says; `"complete": False` in it
            makes the exit code 1.
        argv: the flags, by default those of the process.
    """
    try:
        config = parse_config(config_class, argv, prog=f"python -m jobs.{name}")
        # Ray tells of lost workers on standard output, which is for the one line of the result.
        with contextlib.redirect_stdout(sys.stderr):
            result = job(config)
    except PipelineError as raised:
        # Ray gives an error of ours from a worker its own traceback as a message.
        error = getattr(raised, "cause", raised)
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    print(json.dumps(result), flush=True)
    return 0 if result.get("complete", True) else 1
