"""A config is data: no text in it, wherever it stands, makes the parser import and so run a module."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import from_dict, parse_config
from pipeline.distillation import DistillationConfig
from pipeline.errors import ConfigError
from pipeline.quantization import CalibrationConfig
from pipeline.synthesis.config import SynthesisConfig

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "synthesize": (SynthesisConfig, {"images_per_class": 1}),
    "calibrate": (CalibrationConfig, {"images": "i"}),
    "distill": (DistillationConfig, {"images": "i", "student": {"depth_pruned": [0]}}),
}
# Of each job, what a file may hold. `probed.X` is a class in a module that says so when it is imported.
FILES = [
    *(
        ("synthesize", f"{section}: probed.X")
        for section in ("teacher", "feature_model", "student", "inversion", "pool")
    ),
    *(("synthesize", f"inversion: {{{name}: probed.X}}") for name in ("stop_formula", "adaptive_end", "views")),
    ("synthesize", "inversion.stop_formula: probed.X"),
    ("synthesize", "inversion: section.yaml"),
    ("synthesize", "classes: [{class_path.x: probed.X}]"),
    ("synthesize", "classes: ['{? class_path # text\n: probed.X}']"),
    *(("calibrate", f"{section}: probed.X") for section in ("qat", "mixed", "workers", "tracking", "settings+")),
    *(("calibrate", f"mixed: {{{name}: probed.X, weight_bits: 6}}") for name in ("low", "high")),
    *(("calibrate", f"{name}: [probed.X]") for name in ("settings", "settings+", "qat.settings", "qat.settings+")),
    *(("calibrate", f"qat: {{{name}: probed.X}}") for name in ("augment", "class_path", "augment+", "__path__")),
    ("calibrate", "qat: {init_args: {augment: probed.X}}"),
    ("calibrate", "qat: '{augment: probed.X}'"),
    ("calibrate", "qat: text.yaml"),
    ("calibrate", "config: whole.yaml"),
    ("distill", "augment: probed.X"),
    ("distill", "student: {model: probed.X}"),
    ("distill", "images: [[probed.X]]"),
    ("distill", "images.init_args: {uri: probed.X}"),
]
FLAGS = [
    *(
        ("synthesize", f"--{name}", "probed.X")
        for name in ("teacher", "student", "inversion.views", "inversion.stop_formula")
    ),
    ("synthesize", "--teacher.model_args={a: 1}", "--teacher.model_args.b.class_path", "probed.X"),
    ("synthesize", "--teacher.model_args.b", r'{"class\u005fpath": probed.X}'),
    ("synthesize", "--classes", "[{class_path: probed.X}]"),
    ("synthesize", "--inversion", "section.yaml"),
    *(("calibrate", f"--{name}=probed.X") for name in ("qat", "mixed", "mixed.low", "settings+", "qat.settings+")),
    *(("calibrate", f"--qat.{name}", "probed.X") for name in ("augment", "init_args.augment", "class_path")),
    ("calibrate", "--settings", "[probed.X]"),
    ("calibrate", "--settings.class_path", "probed.X"),
    ("calibrate", "--qat", "{augment: probed.X}"),
    ("calibrate", "--qat", "--x: 1\naugment: probed.X"),
    ("calibrate", "--qat", "--", "probed.X"),
    ("calibrate", "--config", "qat: probed.X"),
    ("distill", "--student.model", "probed.X"),
    ("distill", "--images.class_path", "probed.X"),
]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that the module `probed` leaves in the working folder when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "probed", raising=False)
    (tmp_path / "probed.py").write_text("open('RAN', 'w').close()\n\n\nclass X:\n    pass\n")
    (tmp_path / "section.yaml").write_text("stop_formula: probed.X\n")
    (tmp_path / "text.yaml").write_text("probed.X")
    (tmp_path / "whole.yaml").write_text("qat: probed.X\n")
    return tmp_path / "RAN"


def settings(job: str) -> dict[str, Any]:
    return {"teacher": {"name": "t"}, "output": "o", **CONFIGS[job][1]}


@pytest.mark.parametrize(("job", "text"), FILES)
def test_no_file_and_no_data_imports_a_module(job: str, text: str, ran: Path) -> None:
    values = settings(job) | yaml.safe_load(text)
    Path("job.yaml").write_text(yaml.safe_dump(values))
    for read in (
        lambda: parse_config(CONFIGS[job][0], ["--config", "job.yaml"]),
        lambda: from_dict(CONFIGS[job][0], values),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize(("job", "flags"), [(job, flags) for job, *flags in FLAGS])
def test_no_flag_imports_a_module(job: str, flags: list[str], ran: Path) -> None:
    Path("job.yaml").write_text(yaml.safe_dump(settings(job)))
    with pytest.raises(ConfigError):
        parse_config(CONFIGS[job][0], ["--config", "job.yaml", *flags])
    assert not ran.exists()


@pytest.mark.parametrize("images", ["probed.X", ["probed.X"], [{"uri": "probed.X"}]])
def test_a_text_where_text_belongs_is_only_text(images: Any, ran: Path) -> None:
    config = from_dict(DistillationConfig, settings("distill") | {"images": images})
    assert config.images == "probed.X" or len(config.images) == 1
    assert not ran.exists()


def test_a_section_may_be_the_path_of_a_file_beside_the_one_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("job.yaml", "output: o\nimages_per_class: 1\nteacher: parts/teacher.yaml\ninversion: parts/inversion.yaml\n"),
        ("parts/teacher.yaml", "name: t\n"),
        ("parts/inversion.yaml", "iterations: 50\nstop_formula: formula.yaml\n"),
        ("parts/formula.yaml", "{keep_ratio: 0.25, by_step: 20}\n"),
    ):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    config = parse_config(SynthesisConfig, ["--config", "a/job.yaml"])
    assert (config.teacher.name, config.inversion.iterations) == ("t", 50)
    assert config.inversion.stop_formula is not None
    assert config.inversion.stop_formula.by_step == 20
    flags = ["--config", "a/job.yaml", "--inversion", "a/parts/inversion.yaml", "--inversion.iterations=60"]
    assert parse_config(SynthesisConfig, flags).inversion.iterations == 60


@pytest.mark.parametrize(
    ("job", "text", "message"),
    [
        (
            "synthesize",
            "teacher: deit",
            "`teacher` is a section, `teacher: {name: ...}`, or the path of a YAML file with one, not 'deit'",
        ),
        (
            "calibrate",
            "settings: [w4a4]",
            "`settings[0]` is a section, `settings: [{weights: ...}]`, or the path of a YAML file with one, not 'w4a4'",
        ),
        (
            "calibrate",
            "settings: {weights: 4}",
            "`settings` is a list of sections, `settings: [{weights: ...}]`, not {'weights': 4}",
        ),
        (
            "calibrate",
            "qat: true",
            "`qat` is a section, `qat: {settings: ...}`, or the path of a YAML file with one, not True",
        ),
        ("distill", "images: [{uri: a, weigth: 3}]", "'images[0].weigth' is no setting: did you mean `weight`?"),
        ("distill", "student: {modle: 3}", "'student.modle' is no setting: did you mean `model`?"),
        ("distill", "images: [{zzz: 3}]", "'images[0].zzz' is no setting: there are uri, weight"),
    ],
)
def test_what_is_no_section_is_named(job: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(CONFIGS[job][0], settings(job) | yaml.safe_load(text))
    assert str(caught.value) == message
