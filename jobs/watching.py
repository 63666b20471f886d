"""Look at an output until its run is over: a table that is redrawn on a terminal, a line for each change elsewhere."""

import shutil
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TextIO

from pipeline.errors import DatasetError
from pipeline.log import one_printed_line

Look = Callable[[], dict[str, Any]]


def watch(look: Look, *, every_s: float, stream: TextIO, pause: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Print the state of an output whenever it has changed, and return it once its run is over or Ctrl-C is pressed.

    Where the storage does not answer, that is said, and the next look tries again.

    Args:
        look: function that returns what `jobs.status` prints.
        every_s: seconds between updates.
        stream: where to print. A terminal gets a table in one place, any other stream a line for each change.
        pause: function that waits for a number of seconds.

    Raises:
        DatasetError: there is nothing to look at, or the first look failed.
    """
    started, shown = time.monotonic(), dict[str, str]()
    first = found = look()
    trouble = ""
    try:
        while True:
            table = describe(found, first, time.monotonic() - started) | ({"not seen": trouble} if trouble else {})
            _show(table, shown, stream)
            shown = table
            if _is_over(found):
                _tell_rest(found, stream)
                return found
            pause(every_s)
            try:
                found, trouble = look(), ""
            except DatasetError as error:
                if not error.is_transient:
                    raise
                trouble = str(error)
    except KeyboardInterrupt:
        return found


def _show(table: Mapping[str, str], shown: Mapping[str, str], stream: TextIO) -> None:
    """Print a table over the one that is shown; where there is no terminal, print its changes as a line."""
    if stream.isatty():
        _redraw(table, len(shown), stream)
    elif _without_speed(table) != _without_speed(shown):
        line = "; ".join(f"{name} {value}" for name, value in table.items())
        stream.write(f"{one_printed_line(line)}\n")
    stream.flush()


def _is_over(found: dict[str, Any]) -> bool:
    if found["complete"] or found["job"] == "distill":
        return found["complete"]
    if found["job"] == "compact":
        # Shards that the images lack do not count (`allow_incomplete`).
        return found["num_done"] >= found["num_parts"]
    # A calibration's report, with the artifacts it refused, is written last. Shards that failed, or whose part is
    # damaged, are made by another run.
    return not found["missing"]


def _tell_rest(found: dict[str, Any], stream: TextIO) -> None:
    """Print why the watching ends although not all is done."""
    if found["complete"]:
        return
    if found["job"] == "calibrate":
        line = f"the calibration is over, {len(found['failed'])} refused"
    elif found["job"] == "compact" and not (found["num_failed"] or found["num_damaged"]):
        line = f"the compaction merges {found['num_parts']} parts, and all are there; other shards were never made"
    else:
        undone = ", ".join(f"{found[f'num_{name}']} {name}" for name in ("failed", "damaged") if found[f"num_{name}"])
        # Whether a run is at work cannot be seen in the output.
        line = f"no shard is missing, {undone}. If another run is making these again, its own lines say so"
    stream.write(f"{line}\n")
    stream.flush()


def _redraw(table: Mapping[str, str], num_shown: int, stream: TextIO) -> None:
    # A row that is wider than the terminal would take two lines, and the way up would be too short.
    width = shutil.get_terminal_size().columns - 1
    rows = [one_printed_line(f"{name:<10}{value}")[:width] for name, value in table.items()]
    # Back to the first line of the table, and erase from there.
    up = f"\x1b[{num_shown}A\r\x1b[J" if num_shown else ""
    stream.write(up + "".join(f"{row}\n" for row in rows))


def _without_speed(table: Mapping[str, str]) -> dict[str, str]:
    """Return what changes only when something is done; the speed changes with time."""
    return {name: value for name, value in table.items() if name != "speed"}


def describe(found: dict[str, Any], first: dict[str, Any], seconds: float) -> dict[str, str]:
    """Return the rows of the table, by their names.

    Args:
        found: the present state.
        first: the state at the first look.
        seconds: seconds since the first look.
    """
    table = {"output": found["output"], **_ROWS[found["job"]](found, first, seconds)}
    return {name: value for name, value in table.items() if value}


def _synthesis(found: dict[str, Any], first: dict[str, Any], seconds: float) -> dict[str, str]:
    done, total = found["num_done"], found["num_shards"]
    troubles = {name: found[f"num_{name}"] for name in ("failed", "damaged", "retried")}
    return {
        "shards": f"{done} of {total} done ({100 * done // max(1, total)}%)",
        "trouble": ", ".join(f"{number} {name}" for name, number in troubles.items() if number),
        "speed": _speed(done - first["num_done"], total - done, seconds),
        "inverting": _work(found["actor_hours"], over=done == total),
    }


def _work(hours: float, *, over: bool) -> str:
    # Known of the parts in the index, which is written once a minute.
    if not hours:
        return ""
    time_taken = f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
    return f"{time_taken} of actors{'' if over else ' so far'}"


def _speed(new: int, left: int, seconds: float) -> str:
    if not new:
        return f"no shard finished in {timedelta(seconds=round(seconds))}" if seconds >= 1 else ""
    per_minute = f"{60 * new / seconds:.3g} shards a minute"
    return f"{per_minute}, {timedelta(seconds=round(left * seconds / new))} left" if left else per_minute


def _distillation(found: dict[str, Any], first: dict[str, Any], seconds: float) -> dict[str, str]:
    new, left = found["epochs_done"] - first["epochs_done"], (found["epochs"] or 0) - found["epochs_done"]
    speed = f"{timedelta(seconds=round(left * seconds / new))} left" if new and left else ""
    return {"epochs": f"{found['epochs_done']} of {found['epochs']} done", "speed": speed, **_missing(found)}


def _calibration(found: dict[str, Any], first: dict[str, Any], seconds: float) -> dict[str, str]:
    return {
        "artifacts": ", ".join(found["artifacts"]) or "none yet",
        "left": f"{', '.join(found['left'])} of an earlier run" if found["left"] else "",
        "trouble": f"{len(found['failed'])} refused" if found["failed"] else "",
        **_missing(found),
    }


def _missing(found: dict[str, Any]) -> dict[str, str]:
    return {"missing": ", ".join(found["missing"])}


_ROWS = {"synthesize": _synthesis, "compact": _synthesis, "distill": _distillation, "calibrate": _calibration}
