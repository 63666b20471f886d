"""A config is data: no text in it, wherever it stands, makes the parser import and so run a module."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import from_dict, parse_config
from pipeline.distillation import DistillationConfig
from pipeline.distillation.config import WeightedImages
from pipeline.errors import ConfigError
from pipeline.inversion.config import AdaptiveEnd, InversionConfig
from pipeline.quantization import BitWidths, CalibrationConfig
from pipeline.quantization.mixed_config import MixedConfig
from pipeline.quantization.qat_config import QatConfig
from pipeline.synthesis.config import SynthesisConfig
from pipeline.workers import WorkersConfig

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
        (
            "distill",
            "images: {uri: a}",
            "`images` is text or a list of sections, `images: [{uri: ...}]`, not {'uri': 'a'}",
        ),
        ("distill", "images: [a, 3]", "`images[1]` is text, not 3: put it in quotes"),
        ("calibrate", "images: {a: b}", "`images` is text or a list of texts, not {'a': 'b'}"),
        ("synthesize", "feature_model: {}", "`feature_model` is empty: give its name"),
        ("distill", "images: [{zzz: 3}]", "'images[0].zzz' is no setting: there are uri, weight"),
    ],
)
def test_what_is_no_section_is_named(job: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(CONFIGS[job][0], settings(job) | yaml.safe_load(text))
    assert str(caught.value) == message


@pytest.mark.parametrize("read", ["file", "data", "flag"])
@pytest.mark.parametrize(
    ("job", "name", "empty", "expected"),
    [
        ("calibrate", "settings", [{}], [BitWidths()]),
        ("calibrate", "settings", [{"weights": 4}, {}], [BitWidths(weights=4), BitWidths()]),
        ("calibrate", "qat", {}, QatConfig()),
        ("calibrate", "mixed", {"weight_bits": 6, "low": {}}, MixedConfig(weight_bits=6)),
        ("calibrate", "mixed", {"weight_bits": 6, "low": None}, MixedConfig(weight_bits=6)),
        ("calibrate", "workers", None, WorkersConfig()),
        ("synthesize", "inversion", None, InversionConfig()),
        ("synthesize", "inversion", {"adaptive_end": {}}, InversionConfig(adaptive_end=AdaptiveEnd())),
        ("synthesize", "feature_model", None, None),
        ("synthesize", "checkpoint_minutes", None, None),
    ],
)
def test_an_empty_section_is_its_default(
    read: str, job: str, name: str, empty: Any, expected: Any, tmp_path: Path
) -> None:
    config_class, values, file = CONFIGS[job][0], settings(job), tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(values if read == "flag" else values | {name: empty}))
    flags = [f"--{name}={json.dumps(empty)}"] if read == "flag" else []
    if read == "data":
        config = from_dict(config_class, values | {name: empty})
    else:
        config = parse_config(config_class, ["--config", str(file), *flags])
    assert getattr(config, name) == expected


@pytest.mark.parametrize(
    ("job", "name"),
    [
        *(
            ("synthesize", name)
            for name in ("inversion.tv_l2", "retry_failed", "teacher.use_ema", "teacher.model_args")
        ),
        *(("synthesize", name) for name in ("pool.label_selector", "shard_size", "seed")),
        *(("calibrate", name) for name in ("qat.augment.erase", "qat.held_back", "batch_size", "settings")),
        *(("distill", name) for name in ("lr", "cache_gb", "score_every", "augment.erase")),
    ],
)
def test_null_is_refused_where_it_means_nothing(job: str, name: str, tmp_path: Path) -> None:
    """It turned the total variation off, or took raw weights, without a word."""
    values = settings(job)
    *sections, last = name.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = None
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    for read in (
        lambda: parse_config(CONFIGS[job][0], ["--config", str(tmp_path / "job.yaml")]),
        lambda: from_dict(CONFIGS[job][0], values),
    ):
        message = f"^(the config file 'job.yaml': )?`{name}` is null: give a value or leave it out$"
        with pytest.raises(ConfigError, match=message):
            read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the config file 'job.yaml' is empty: write settings into it, as `name: value`"),
        ("# later\n", "the config file 'job.yaml' is empty: write settings into it, as `name: value`"),
        ("deit", "the config file 'job.yaml' holds 'deit': write settings into it, as `name: value`"),
        ("shard_size: 0123\n", "octal in YAML: write 123, or '0123' for text"),
        ("shard_size: 1\nclasses: [1, -010]\n", "-010 in line 2 is octal in YAML: write -10, or '-010' for text"),
        ("classes: 1:30\n", "1:30 in line 1 counts in sixties in YAML: write '1:30' for text"),
        ("shard_size: 1\nclasses: [0:3]\n", "0:3 in line 2 counts in sixties in YAML"),
        ("inversion:\n  lr: 0:0.5\n", "0:0.5 in line 2 counts in sixties in YAML"),
    ],
)
def test_a_file_without_settings_or_with_numbers_in_another_base_is_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse_config(SynthesisConfig, ["--config", str(tmp_path / "job.yaml")])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "[b, {uri: c, weigth: 3}]"], "'images[1].weigth' is no setting: did you mean `weight`?"),
        (["--images", "[b, {uri: c, weight: many}]"], "`images.weight` is an integer, not 'many'"),
        (["--images", "[b, 3]"], "`images[1]` is text, not 3: put it in quotes"),
        (["--images", "[b"], "--images cannot be read"),
        (["--teacher.class_names", "[0, 1]"], "`teacher.class_names[0]` is text, not 0: put it in quotes"),
        (["--teacher.model_args", "{a: 1, a: 2}"], "'a' comes twice"),
        (["--teacher.model_args.b", "{a: 1, a: 2}"], "'a' comes twice"),
        (["--student.depth_pruned", "[010]"], "010 in line 1 is octal in YAML"),
    ],
)
def test_a_list_in_a_flag_never_falls_back_to_text(flags: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings("distill")))
    with pytest.raises(ConfigError) as caught:
        parse_config(DistillationConfig, ["--config", str(tmp_path / "job.yaml"), *flags])
    assert message in str(caught.value)


def test_lists_in_flags_replace_and_add_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings("distill")))

    def images(*flags: str) -> Any:
        return parse_config(DistillationConfig, [*flags, "--config", str(tmp_path / "job.yaml")]).images

    assert images("--images", "[b]", "--images=c") == "c"
    assert images("--images=c", "--images", "[b]") == ["b"]
    assert images("--images+", "b") == ["i", "b"]
    assert images("--images", "*.parquet") == "*.parquet"
    assert images("--images", "[b]", "--images+", "{uri: c, weight: 4}") == ["b", WeightedImages(uri="c", weight=4)]


def test_a_zero_before_a_number_is_only_a_zero_in_text_and_flags() -> None:
    flags = ["--teacher.name=t", "--output=010", "--images_per_class", "010", "--classes", "010"]
    config = parse_config(SynthesisConfig, flags)
    assert (config.output, config.images_per_class, config.classes) == ("010", 10, "010")
