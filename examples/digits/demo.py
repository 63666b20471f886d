"""Run the whole pipeline on handwritten digits: `python -m examples.digits.demo --config CONFIG.yaml`.

Trains a teacher, inverts it (sparse and dense), quantizes it on four sets of images and distills a student on each:
synthetic sparse, synthetic dense, real, and the noise that inversion starts from. Every stage is the job that a user
would run, with its own config beside the demo's.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from examples.digits.pictures import draw_images
from examples.digits.report import check_claims, render, results, summary_tables
from examples.digits.teacher import DigitsConfig, make_digits
from jobs.entry import run_job
from pipeline import storage
from pipeline.config import parse_config, to_dict
from pipeline.distillation import DistillationConfig, distill
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluationConfig, evaluate
from pipeline.log import logger
from pipeline.outputs.owners import check_place
from pipeline.quantization import CalibrationConfig, calibrate, range_error
from pipeline.report.page import text_table
from pipeline.report.writing import PAGE
from pipeline.synthesis import SynthesisConfig, synthesize

C = TypeVar("C")
ARMS = ("sparse", "dense", "real", "noise")
SYNTHETIC = {
    "sparse": "sparse inversion of the teacher",
    "dense": "dense inversion of the teacher",
    "noise": "the noise that inversion starts from",
}
STAGES = str(Path(__file__).parent / "configs")
# Written first; a folder that holds it is of a demo, which may be made anew.
MARKER = "demo.json"
# What a demo makes besides folders in `calibrate` and `distill`, one for each set of images.
_WHOLE_STAGES = ("digits", "evaluate", "sparse", "dense", "noise")
_RESULTS = ("report.json", "claims.json", "images.png", "report.html")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Everything once, on handwritten digits.

    Args:
        output: local folder for everything; what an earlier demo made there is replaced, other files stay.
        stages: folder of the stages' own configs: digits, evaluate, sparse, dense, noise, calibrate and
            distill.yaml.
        student_seeds: a student is trained with each, on each set of images; their mean counts.
    """

    output: str = "runs/demo"
    stages: str = STAGES
    student_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        if not self.student_seeds or len(set(self.student_seeds)) != len(self.student_seeds):
            raise ConfigError(f"student_seeds must be one or more different numbers, not {self.student_seeds}")


class Demo:
    """The stages of one run, each a job with its config and where its output goes."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}
        self.images = {
            "sparse": self.path("sparse"),
            "dense": self.path("dense"),
            "real": self.path("digits", "real.parquet"),
            "noise": self.path("noise"),
            "reference": self.path("digits", "reference.parquet"),
        }

    def path(self, *names: str) -> str:
        return storage.join(self.config.output, *names)

    def stage(self, config_class: type[C], name: str, **settings: object) -> C:
        """The config file of a stage with some settings changed; the teacher and the held-out scans are this run's."""
        flags = {"output": self.path(name), **settings}
        if config_class is not DigitsConfig:
            flags["teacher.name"] = f"local-dir:{self.path('digits', 'teacher')}"
        if config_class not in (DigitsConfig, SynthesisConfig):
            flags.setdefault("labeled", self.path("digits", "held_out.parquet"))
        argv = [f"--{key}={value}" for key, value in flags.items()]
        return parse_config(config_class, ["--config", f"{self.config.stages}/{name}.yaml", *argv])

    @contextmanager
    def timed(self, name: str, what: str) -> Iterator[None]:
        """Say what starts, and keep how long it took."""
        logger.info(f"demo: {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    def pages(self) -> list[str]:
        """The folders of stages that have a page, which one that could not be written lacks."""
        calibrations = [f"calibrate/{data}" for data in (*ARMS, "reference")]
        students = [f"distill/{data}-{seed}" for data in ARMS for seed in self.config.student_seeds]
        stages = ["evaluate", *SYNTHETIC, *calibrations, *students]
        return [stage for stage in stages if storage.exists(self.path(stage, PAGE))]

    def train_teacher(self) -> float:
        make_digits(self.stage(DigitsConfig, "digits"))
        return evaluate(self.stage(EvaluationConfig, "evaluate"))["artifacts"][0]["top1"]

    def quantize(self, data: str) -> dict[str, Any]:
        output = self.path("calibrate", data)
        return calibrate(self.stage(CalibrationConfig, "calibrate", images=self.images[data], output=output))

    def measure_reference(self) -> dict[str, Any]:
        """Activation ranges on real images that no arm calibrates on."""
        settings = {"settings": "[{weights: 8, activations: 8}]", "formats": "[pt2]", "labeled": "null"}
        output = self.path("calibrate", "reference")
        images = self.images["reference"]
        return calibrate(self.stage(CalibrationConfig, "calibrate", images=images, output=output, **settings))

    def train_student(self, data: str, seed: int) -> dict[str, Any]:
        output = self.path("distill", f"{data}-{seed}")
        return distill(self.stage(DistillationConfig, "distill", images=self.images[data], output=output, seed=seed))


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage and write `report.json`, `claims.json`, `images.png` and `report.html` under the output.

    Returns:
        What the job prints: where the report is, and which of the demo's claims were met.

    Raises:
        PipelineError: a stage failed; what came before it stays.
    """
    _begin(config)
    demo = Demo(config)
    with demo.timed("teacher", "a teacher learns handwritten digits"):
        teacher_top1 = demo.train_teacher()
    synthesis = {}
    for data, what in SYNTHETIC.items():
        with demo.timed(data, what):
            synthesis[data] = synthesize(demo.stage(SynthesisConfig, data))
            if not synthesis[data]["complete"]:
                return {"complete": False, data: synthesis[data]}
    with demo.timed("quantization", f"int8 and int4 on {', '.join(ARMS)} images"):
        reference = storage.read_json(demo.measure_reference()["ranges"])
        calibrations = {data: demo.quantize(data) for data in ARMS}
    errors = {data: range_error(storage.read_json(done["ranges"]), reference) for data, done in calibrations.items()}
    with demo.timed("distillation", f"students on {', '.join(ARMS)} images, seeds {config.student_seeds}"):
        students = {data: [demo.train_student(data, seed) for seed in config.student_seeds] for data in ARMS}
    report = results(
        teacher_top1, {data: synthesis[data] for data in ("sparse", "dense")}, calibrations, errors, students
    )
    return _finish(demo, report, calibrations)


def _begin(config: DemoConfig) -> None:
    """Delete what an earlier demo made in the output folder.

    The marker stays: without it, what is left of an interrupted deletion could not be begun anew.

    Raises:
        ConfigError: it is no local folder, or holds something other than an earlier demo.
    """
    check_place(config.output, shared=False)
    if not storage.is_local(config.output):
        raise ConfigError(f"output {config.output!r}: the demo needs a local folder, timm loads its teacher from there")
    folder = Path(storage.absolute(config.output))
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise ConfigError(
                f"output {config.output!r} is not empty and holds no {MARKER} of an earlier demo: give another output, "
                "or delete the folder"
            )
        _delete(folder, _made(folder))
    with storage.writing_to(config.output):
        storage.write_json(storage.join(config.output, MARKER), to_dict(config))


def _made(folder: Path) -> list[Path]:
    """Return the files and folders that a demo made, perhaps with other student seeds."""
    patterns = [*_WHOLE_STAGES, *_RESULTS, *(f"calibrate/{data}" for data in (*ARMS, "reference"))]
    patterns += [f"distill/{data}-*" for data in ARMS]
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [path for path in found if path.parent.name != "distill" or path.name.rpartition("-")[2].isdecimal()]


def _delete(folder: Path, made: list[Path]) -> None:
    if not made:
        return
    logger.info(f"demo: made anew in {str(folder)!r}: {', '.join(str(path.relative_to(folder)) for path in made)}")
    for path in made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _finish(demo: Demo, report: dict[str, Any], calibrations: dict[str, Any]) -> dict[str, Any]:
    claims = check_claims(report)
    storage.write_json(demo.path("report.json"), report)
    storage.write_json(demo.path("claims.json"), [to_dict(claim) for claim in claims])
    picture = draw_images({data: demo.images[data] for data in ("real", "dense", "sparse", "noise")})
    storage.write_bytes(demo.path("images.png"), picture)
    page = render(demo.config.output, picture, report, claims, calibrations, demo.seconds, demo.pages())
    storage.write_bytes(demo.path("report.html"), page.encode())
    for table in summary_tables(report, claims):
        print(text_table(table), end="\n\n", flush=True)
    return {
        # A demo that does not show what it is to show is not done.
        "complete": all(claim.met for claim in claims),
        "report": demo.path("report.html"),
        "claims_met": sum(claim.met for claim in claims),
        "claims_not_met": [claim.text for claim in claims if not claim.met],
        "seconds": round(sum(demo.seconds.values()), 1),
    }


def _left(config: DemoConfig) -> str:
    return f"run it again: the demo makes {config.output!r} anew from the start"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("demo", DemoConfig, run_demo, argv, left=_left)


if __name__ == "__main__":
    sys.exit(main())
