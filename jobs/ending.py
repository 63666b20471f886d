"""Lines for a person at the end of a job: a table, and the command to go on with, above the JSON line."""

import dataclasses
import json
import shlex
from typing import Any

from pipeline import storage
from pipeline.config.defaults import default_of
from pipeline.models import ModelConfig
from pipeline.report.page import Table, text_table
from pipeline.report.writing import from_here

# Settings of thousands of class names make a command that nobody reads.
_LONGEST = 2000


def table_lines(table: Table) -> list[str]:
    """Return a table as lines for a terminal, without columns that no row has a value in; nothing without rows."""
    if not table.rows:
        return []
    used = [place for place in range(len(table.header)) if any(row[place] is not None for row in table.rows)]
    header = [table.header[place] for place in used]
    return text_table(Table(header=header, rows=[[row[place] for place in used] for row in table.rows])).splitlines()


def command(job: str, teacher: ModelConfig | None = None, **settings: str | bool | None) -> str:
    """Return the command line of a job, as a shell takes it.

    Args:
        job: name of the job, as in `python -m jobs.NAME`.
        teacher: settings of a model, which become the job's `teacher`; None for no such flags.
        settings: further flags by name. Those that are None are left out.
    """
    flags = [] if teacher is None else _teacher_flags(teacher)
    flags += [part for name, value in settings.items() if value is not None for part in (f"--{name}", _as_flag(value))]
    return shlex.join(["python", "-m", f"jobs.{job}", *flags])


def next_line(why: str, line: str) -> list[str]:
    """Return the line that says what to do next, and why; nothing where it would fill a screen."""
    return [f"{why}: {line}"] if len(line) <= _LONGEST else []


def beside(output: str, name: str) -> str:
    """Return a folder for what is made from an output: next to it, or in it if it is a whole bucket or disk."""
    folder = output.rstrip("/")
    parent, _, own = folder.rpartition("/")
    return storage.join(output, name) if not own or parent.endswith("/") else f"{folder}-{name}"


def score_line(config: Any, artifact: str, *, compiled: bool = False) -> list[str]:
    """Return the line with the command that scores an artifact of a calibration or a student of a distillation.

    Args:
        config: settings of the job, which have a `teacher`, and `labeled` images or None.
        artifact: location of the artifact or student.
        compiled: whether it is machine code, which this job compiled.
    """
    own: dict[str, Any] = {"artifacts": from_here(artifact), "allow_compiled": True if compiled else None}
    if config.labeled is None:
        asked = command("evaluate", config.teacher, labeled="LABELED", **own)
        return next_line("score it, with a folder or Parquet file of labeled images for LABELED", asked)
    given = {"labeled": config.labeled, "labeled_split": config.labeled_split}
    asked = command("evaluate", config.teacher, **given, **own, output=beside(config.output, "scores"))
    return next_line("see which classes it takes for which", asked)


def _teacher_flags(teacher: ModelConfig) -> list[str]:
    """Return the flags that give another job the same teacher: all settings that are not the defaults."""
    settings = ((field, getattr(teacher, field.name)) for field in dataclasses.fields(teacher))
    given = {field.name: value for field, value in settings if value != default_of(field)}
    return [part for name, value in given.items() for part in (f"--teacher.{name}", _as_flag(value))]


def _as_flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
