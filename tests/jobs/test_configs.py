"""Every config that comes with the jobs is read by its job, and says what it should."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.digits.demo import DemoConfig
from examples.digits.teacher import DigitsConfig
from jobs.status import StatusConfig
from pipeline.config import from_dict, parse_config, to_dict
from pipeline.distillation import DistillationConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluationConfig
from pipeline.inversion import InversionConfig
from pipeline.inversion.schedule import survivors
from pipeline.quantization import CalibrationConfig
from pipeline.synthesis import SynthesisConfig

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("jobs", "examples") for path in (ROOT / folder).rglob("configs/**/*.yaml"))
JOBS: dict[str, Any] = {
    "jobs.calibrate": CalibrationConfig,
    "jobs.distill": DistillationConfig,
    "jobs.evaluate": EvaluationConfig,
    "jobs.status": StatusConfig,
    "jobs.synthesize": SynthesisConfig,
    "examples.digits.demo": DemoConfig,
    "examples.digits.teacher": DigitsConfig,
}


def commands(text: str) -> list[list[str]]:
    """Find the commands of jobs and examples in a text, split as a shell would; continued lines are joined."""
    joined = re.sub(r"\\\n#?\s*", " ", text)
    return [shlex.split(found, comments=True) for found in re.findall(r"python -m (?:jobs|examples)\.[^`\n]*", joined)]


def parse_command(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(ROOT)
    flags = ["--dry_run=true" if flag == "--dry-run" else flag for flag in command[3:]]
    return parse_config(JOBS[command[2]], flags)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_read_by_the_job_it_names(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands(path.read_text())
    assert command[3:5] == ["--config", path.relative_to(ROOT).as_posix()]
    config = parse_command(command, monkeypatch)
    assert config.output


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_imagenet_settings_are_the_published_ones(size: str, kind: str) -> None:
    file = ROOT / "jobs" / "configs" / "imagenet" / f"deit_{size}_{kind}.yaml"
    config = parse_config(SynthesisConfig, ["--config", str(file)])
    inversion = config.inversion
    assert config.teacher.name == f"deit_{size}_patch16_224.fb_in1k"
    assert config.shard_size == 32
    assert (inversion.iterations, inversion.lr, inversion.betas) == (4000, 0.25, (0.5, 0.99))
    assert (inversion.scope, inversion.tv_l2, inversion.jitter, inversion.flip) == ("published", 1e-4, 0.125, 0.5)
    assert survivors(196, inversion.stop_fractions) == ([137, 95, 66, 46] if kind == "sparse" else [])


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_imagenet_rebirth(size: str) -> None:
    config = parse_config(
        SynthesisConfig, ["--config", str(ROOT / "jobs" / "configs" / "imagenet" / f"deit_{size}_rebirth.yaml")]
    )
    assert config.inversion.phases(196) == [(1000, 196), (1000, 147), (1000, 98), (1000, 49)]
    assert config.inversion.images_per_run == config.images_per_class == 4


def test_demo_arms_differ_in_nothing_but_their_schedule() -> None:
    sparse, dense = (
        parse_config(SynthesisConfig, ["--config", str(ROOT / "examples" / "digits" / "configs" / f"{kind}.yaml")])
        for kind in ("sparse", "dense")
    )
    for name in ("teacher", "images_per_class", "shard_size", "seed", "pool"):
        assert getattr(sparse, name) == getattr(dense, name)
    for name in ("lr", "betas", "jitter", "flip", "class_weight", "scope", "dtype"):
        assert getattr(sparse.inversion, name) == getattr(dense.inversion, name)
    assert survivors(64, sparse.inversion.stop_fractions)[-1] == 25
    work = [sum(steps * patches for steps, patches in stage.inversion.phases(64)) for stage in (sparse, dense)]
    assert work[0] / work[1] < 1 / 3
    assert dense.inversion.stop_steps == []


@pytest.mark.parametrize("document", ["README.md", "cluster.yaml", "examples/cluster-gcp.yaml"])
def test_commands_in_documents_are_understood(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands((ROOT / document).read_text()):
        if command[2] != "jobs.status" and "--config" in command:
            parse_command(command, monkeypatch)


@pytest.mark.parametrize(
    ("given", "read"),
    [("a", "a"), ("[a, s3://b/c]", ["a", "s3://b/c"]), ("x[1].parquet", "x[1].parquet"), ("[a]", ["a"])],
)
def test_images_are_one_uri_or_a_list(given: str, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_config(DistillationConfig, ["--config", "examples/digits/configs/distill.yaml", "--images", given])
    assert config.images == read
    assert from_dict(DistillationConfig, to_dict(config)) == config


NEEDED: dict[str, dict[str, Any]] = {
    "jobs.synthesize": {"teacher": {"name": "t"}, "output": "o", "images_per_class": 1},
    "jobs.calibrate": {"teacher": {"name": "t"}, "images": "i", "output": "o"},
    "jobs.distill": {"teacher": {"name": "t"}, "images": "i", "output": "o", "student": {"depth_pruned": [0]}},
    "jobs.evaluate": {"teacher": {"name": "t"}, "labeled": "l"},
    "jobs.status": {"uri": "u"},
    "examples.digits.teacher": {"output": "o"},
}
INFINITE, LARGE = float("inf"), 2**64
EMPTY = "is empty: name a file or a folder, `.` for the working folder"


@pytest.mark.parametrize(
    ("job", "settings", "message"),
    [
        (
            "jobs.synthesize",
            {"checkpoint_minutes": INFINITE},
            "checkpoint_minutes must be finite, not inf: null is for no checkpoints",
        ),
        ("jobs.synthesize", {"pool": {"price_per_hour": INFINITE}}, "pool.price_per_hour must be finite, not inf"),
        *(
            (job, {"seed": LARGE}, f"seed must be at most 2^64 - 1, not {LARGE}")
            for job in ("jobs.synthesize", "jobs.calibrate", "jobs.distill", "examples.digits.teacher")
        ),
        *((job, {"seed": -1}, "seed must not be negative, not -1") for job in ("jobs.synthesize", "jobs.distill")),
        *((job, {"labeled": ""}, f"labeled {EMPTY}") for job in ("jobs.calibrate", "jobs.distill", "jobs.evaluate")),
        *((job, {"images": ""}, f"images {EMPTY}") for job in ("jobs.calibrate", "jobs.distill")),
        *((job, {"images": ["a", ""]}, f"images {EMPTY}") for job in ("jobs.calibrate", "jobs.distill")),
        ("jobs.distill", {"images": [{"uri": ""}]}, f"images {EMPTY}"),
        (
            "jobs.calibrate",
            {"workers": {"size": 0, "min_size": 1}},
            "workers.min_size is 1, and workers.size is 0: leave workers.min_size out",
        ),
        (
            "jobs.calibrate",
            {"mixed": {"weight_bits": 8, "low": {"weights": 8, "activations": 4}, "high": {"weights": 8}}},
            "mixed.low must have fewer bits per weight than mixed.high, and no more per activation: w8a4, w8a8",
        ),
        (
            "jobs.synthesize",
            {"inversion": {"iterations": 100, "stop_formula": {"keep_ratio": 0.25, "by_step": 100}}},
            "stop_formula.by_step must lie before the end, 100 iterations, not 100",
        ),
        ("jobs.status", {"every_s": INFINITE}, "every_s must lie in [0.1, 86400], not inf"),
        ("jobs.status", {"every_s": 1e10}, "every_s must lie in [0.1, 86400], not 10000000000.0"),
    ],
)
def test_what_no_job_can_use_is_refused_by_name(job: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(JOBS[job], NEEDED[job] | settings)
    assert message in str(caught.value)


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    config = from_dict(DistillationConfig, NEEDED["jobs.distill"] | {"seed": LARGE - 1})
    assert torch.Generator().manual_seed(config.seed).initial_seed() == LARGE - 1


def test_stops_that_are_emptied_alone_make_a_dense_inversion() -> None:
    dense = InversionConfig(stop_steps=[], stop_fractions=[])
    assert InversionConfig(stop_steps=[]) == dense
    assert InversionConfig(stop_steps=[], rebirth=2) == InversionConfig(rebirth=2)
    with pytest.raises(ConfigError, match="stop_steps has 0 entries, stop_fractions has 1"):
        InversionConfig(stop_steps=[], stop_fractions=[0.5])
