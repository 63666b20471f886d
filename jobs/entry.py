"""Run a job from its command line: parse the config, print one JSON line, report errors in one line each."""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO, TypeVar

from jobs.cli import examples_of
from jobs.stopping import Stop, exit_code
from pipeline import storage
from pipeline.config import parse_config
from pipeline.credentials import redacted
from pipeline.errors import ConfigError, PipelineError
from pipeline.log import logger, print_safely

C = TypeVar("C")

# Which messages go to standard error; by default all but those for finding faults.
LEVELS = {"--quiet": logging.WARNING, "-q": logging.WARNING, "--verbose": logging.DEBUG, "-v": logging.DEBUG}


def run_job(
    name: str,
    config_class: type[C],
    job: Callable[[C], dict[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    left: Callable[[C], str] = lambda config: "run it again",
    ending: Callable[[C, dict[str, Any]], Iterable[str]] = lambda config, result: (),
) -> int:
    """Run a job and return its exit code.

    0 only if everything is done, 1 for an error or work left undone, 130 after Ctrl-C and 143 after SIGTERM.

    Args:
        name: name of the job, as in `python -m jobs.NAME`.
        config_class: dataclass that `--config` and the flags are parsed to.
        job: function that does the work and returns what the JSON line on standard output says; `"complete": False` in
            it makes the exit code 1.
        argv: flags; by default those of the process. `--quiet` and `-v` say how much is printed.
        left: function that returns one line for a stopped job: what is done, and how to continue.
        ending: function that returns lines for a person: the result, and the command to go on with; see `jobs.ending`.
    """
    level, flags = read_level(sys.argv[1:] if argv is None else argv)
    logger.setLevel(level)
    if sys.stderr is None:
        # Closed by whoever started the job (`2>&-`); Ray and others print there.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    print_safely()
    stop = Stop()
    hears = threading.current_thread() is threading.main_thread()
    joined = _in_cluster()
    config: C | None = None
    try:
        with stop.as_interrupt() if hears else contextlib.nullcontext():
            config = parse_config(config_class, flags, prog=f"python -m jobs.{name}", examples=examples_of(name))
            _check_stays(getattr(config, "output", None))
            # Ray prints about lost workers on standard output, which is for the one line of the result.
            with contextlib.redirect_stdout(_Briefly(sys.stderr)), _exits_as_interrupts(stop):
                try:
                    result = job(config)
                finally:
                    # Exit handlers run in reverse order, so this one runs before Ray's, which prints what it held back.
                    atexit.register(_leave_stdout)
    except PipelineError as raised:
        # Ray gives an error of ours from a worker its own traceback as a message.
        error = getattr(raised, "cause", raised)
        logger.debug("what led to the error:", exc_info=raised)
        logger.error(f"{type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        with stop.end_at_once() if hears else contextlib.nullcontext():
            logger.critical(f"stopped: {_what_is_left(config, left)}")
            if not joined and _in_cluster():
                _leave_cluster()
        return exit_code(stop.number)
    _print_ending(lambda: ending(config, result))
    done = _print_result(json.dumps(redacted(result)))
    return 0 if done and result.get("complete", True) else 1


def _check_stays(output: str | None) -> None:
    """Refuse an output that is gone when the job ends.

    Raises:
        ConfigError: the output is in the memory of this process.
    """
    if output is not None and storage.in_memory(output):
        raise ConfigError(
            f"output {output!r} is in the memory of this process, and gone when the job ends: name a folder"
        )


def _print_ending(make: Callable[[], Iterable[str]]) -> None:
    """Print the lines of a result that a person reads; a file that cannot be read costs only these lines."""
    if not logger.isEnabledFor(logging.INFO):
        return
    try:
        for line in make():
            logger.info(line)
    except PipelineError as error:
        logger.warning(f"the job is done, but its result could not be put in words: {error}")


def _print_result(line: str) -> bool:
    """Print the one line of a result; return whether standard output took it."""
    try:
        print(line, flush=True)
    except OSError as error:
        logger.error(f"the job is done, but its result could not be printed: {type(error).__name__}: {error}")
        # Python would try to print the rest of the line again when it ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return False
    return True


def read_level(argv: Sequence[str]) -> tuple[int, list[str]]:
    """Take the flags that say how much to print off a command line.

    Returns:
        The level of the logger, and the other flags.
    """
    level = logging.INFO
    rest = []
    for flag in argv:
        if flag in LEVELS:
            level = LEVELS[flag]
        else:
            rest.append(flag)
    return level, rest


def _leave_stdout() -> None:
    stream: Any = _Briefly(sys.stderr)
    sys.stdout = stream


class _Briefly:
    """A stream that passes text on, but cuts messages of Ray's raylet after their first sentence.

    The rest of its half page is advice on settings of Ray, which are not the user's to change.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        self._stream.flush()

    def write(self, text: str) -> int:
        sentence, dot, _ = text.partition(". ")
        self._stream.write(sentence + dot.strip() if "(raylet)" in sentence else text)
        return len(text)


@contextlib.contextmanager
def _exits_as_interrupts(stop: Stop) -> Any:
    """Turn SystemExit into KeyboardInterrupt: inside a job only Ray's signal handlers exit the process."""
    try:
        yield
    except SystemExit as exited:
        stop.read_exit(exited)
        raise KeyboardInterrupt from exited


def _what_is_left(config: C | None, left: Callable[[C], str]) -> str:
    if config is None:
        return "nothing was done"
    try:
        return left(config)
    except PipelineError as error:
        return f"run it again for the rest ({error})"


def _in_cluster() -> bool:
    """Return whether this process has joined a Ray cluster; jobs that need none never import Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _leave_cluster() -> None:
    sys.modules["ray"].shutdown()
