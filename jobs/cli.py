"""The command `sparse-inversion JOB ...`, the same as `python -m jobs.JOB ...`, with tab completion."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jsonargparse

from pipeline.config import make_parser

PROG = "sparse-inversion"


@dataclass(frozen=True)
class Job:
    """A job, described by the names of its modules, so that the command line imports only the job that it runs.

    Attributes:
        about: what the job does, in one line.
        config: module and class of the job's settings.
        examples: flags of real commands, for `--help`. Their files are in this repository or come from `make demo`.
    """

    about: str
    config: str
    examples: tuple[str, ...] = ()

    def config_class(self) -> Any:
        """Import the dataclass of its settings."""
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(module), name)


_DEMO_TEACHER = "--teacher.name local-dir:runs/demo/digits/teacher"
_DEMO_LABELED = "--labeled runs/demo/digits/held_out.parquet"
JOBS = {
    "synthesize": Job(
        "invert a teacher into a synthetic dataset",
        "pipeline.synthesis:SynthesisConfig",
        (
            "--config jobs/configs/imagenet/deit_tiny_sparse.yaml --dry-run",
            "--config jobs/configs/imagenet/deit_tiny_sparse.yaml --pool.device cpu",
            f"--config examples/digits/configs/sparse.yaml {_DEMO_TEACHER} --output runs/mine/images",
        ),
    ),
    "compact": Job(
        "merge the parts of a synthetic dataset into larger files",
        "pipeline.compaction:CompactionConfig",
        (
            "--images runs/demo/sparse --output runs/mine/compacted",
            "--images runs/demo/sparse --output runs/mine/compacted --file_mb 64",
        ),
    ),
    "calibrate": Job(
        "quantize a teacher on images",
        "pipeline.quantization:CalibrationConfig",
        (
            "--config jobs/configs/imagenet/deit_tiny_calibrate.yaml --workers.device cpu",
            f"{_DEMO_TEACHER} --images runs/demo/sparse {_DEMO_LABELED} --output runs/mine/int8",
            f"{_DEMO_TEACHER} --images runs/demo/sparse --output runs/mine/int4 "
            "--settings '[{weights: 4, activations: 8}]' --formats '[onnx]'",
        ),
    ),
    "distill": Job(
        "train a student to answer as the teacher does",
        "pipeline.distillation:DistillationConfig",
        (
            "--config examples/digits/configs/distill.yaml --output runs/mine/student",
            f"{_DEMO_TEACHER} --student.depth_pruned '[0, 3]' --images runs/demo/sparse {_DEMO_LABELED} "
            "--output runs/mine/smaller --epochs 20",
        ),
    ),
    "evaluate": Job(
        "score artifacts on labeled images",
        "pipeline.evaluation:EvaluationConfig",
        (
            f"{_DEMO_TEACHER} {_DEMO_LABELED}",
            f"{_DEMO_TEACHER} {_DEMO_LABELED} --artifacts runs/demo/calibrate/sparse/w8a8.onnx --output runs/scores",
            f"{_DEMO_TEACHER} {_DEMO_LABELED} "
            "--artifacts '[runs/demo/calibrate/sparse/w4a8.pt2, runs/demo/distill/sparse-0/student/best]'",
        ),
    ),
    "status": Job(
        "show what is done, missing and failed in an output",
        "jobs.status:StatusConfig",
        ("runs/demo/sparse", "runs/demo/distill/sparse-0 --watch"),
    ),
}
_SHELLS = ("bash", "zsh", "tcsh")
_USAGE = "\n".join(
    [
        f"usage: {PROG} JOB [--config FILE.yaml] [--section.key VALUE ...]",
        "",
        *(f"  {name:<12}{job.about}" for name, job in JOBS.items()),
        f"  {'completion':<12}print the script for tab completion in a shell: {', '.join(_SHELLS)}",
        "",
        f"{PROG} JOB --help lists the settings of a job. Each takes --quiet and --verbose as well.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job and return its exit code: 2 where the command itself is wrong."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ("--help",)
    if name in ("-h", "--help"):
        print(_USAGE)
        return 0
    if name == "completion":
        return _print_completion(flags)
    if name not in JOBS:
        print(f"error: there is no job {name!r}\n{_USAGE}", file=sys.stderr)
        return 2
    return importlib.import_module(f"jobs.{name}").main(flags)


def examples_of(name: str) -> list[str]:
    """Return real commands of a job, to be copied; empty for a name that is not in the list of jobs."""
    return [f"python -m jobs.{name} {flags}" for flags in JOBS[name].examples] if name in JOBS else []


def _print_completion(arguments: Sequence[str]) -> int:
    """Print the script that a shell reads, as in `eval "$(sparse-inversion completion bash)"`."""
    if len(arguments) != 1 or arguments[0] not in _SHELLS:
        print(f"error: completion needs one of {', '.join(_SHELLS)}, not {list(arguments)}", file=sys.stderr)
        return 2
    if find_spec("shtab") is None:
        print(
            "error: tab completion needs the extra 'completion': pip install '.[completion]'",
            file=sys.stderr,
        )
        return 1
    print(_whole_parser().get_completion_script(f"shtab-{arguments[0]}"))
    return 0


def _whole_parser() -> jsonargparse.ArgumentParser:
    """Return one parser for all jobs with all their settings."""
    parser = jsonargparse.ArgumentParser(prog=PROG)
    commands = parser.add_subcommands()
    for name, job in JOBS.items():
        commands.add_subcommand(name, make_parser(job.config_class()), help=job.about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
