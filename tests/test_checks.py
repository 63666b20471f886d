from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.status import StatusConfig
from pipeline.checks import check_range
from pipeline.compaction import CompactionConfig
from pipeline.config import to_dict
from pipeline.distillation.config import DistillationConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluationConfig
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.terms import Term
from pipeline.models import ModelConfig
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.config import CalibrationConfig
from pipeline.synthesis.config import PoolConfig, SynthesisConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.workers import WorkersConfig

TEACHER = ModelConfig(name="tiny")
DISTILL: dict[str, Any] = {
    **{"teacher": TEACHER, "student": StudentConfig(depth_pruned=[0])},
    **{"images": "images", "output": "output"},
}
CALIBRATE: dict[str, Any] = {"teacher": TEACHER, "images": "images", "output": "output"}


@pytest.mark.parametrize(
    ("value", "ends", "message"),
    [
        (-1, {"low": 0}, "x must not be negative, not -1"),
        (0, {"low": 0, "open_low": True}, "x must be positive, not 0"),
        (1, {"low": 2}, "x must be at least 2, not 1"),
        (2, {"low": 2, "open_low": True}, "x must be more than 2, not 2"),
        (1.0, {"low": 0, "high": 1, "open_high": True}, r"x must lie in \[0, 1\), not 1.0"),
        (0.0, {"low": 0, "high": 1, "open_low": True}, r"x must lie in \(0, 1\], not 0.0"),
        (float("nan"), {"low": 0}, "x must not be negative, not nan"),
    ],
)
def test_a_number_outside_its_range_is_refused(value: float, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_range("x", value, **ends)


@pytest.mark.parametrize("value", [None, 0, 0.5, 1])
def test_a_number_within_its_range_passes(value: float | None) -> None:
    check_range("x", value, 0, 1)


@pytest.mark.parametrize("value", ["3", True, [1], 1j])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x must be a number, not "):
        check_range("x", value, 0)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (InversionConfig, {"scope": "publised"}, r"scope must be one of \['image', 'published'\], not 'publised'"),
        (InversionConfig, {"ranking": "cls"}, r"ranking must be one of \['auto', 'cls_attention', .*\], not 'cls'"),
        (InversionConfig, {"dtype": "bf16"}, "dtype must be one of .*, not 'bf16'"),
        (WorkersConfig, {"device": "gpu"}, "workers.device must be one of .*, not 'gpu'"),
        (PoolConfig, {"device": "gpu"}, "pool.device must be one of .*, not 'gpu'"),
        (DistillationConfig, {**DISTILL, "optimizer": "adam"}, "optimizer must be one of .*, not 'adam'"),
        (DistillationConfig, {**DISTILL, "schedule": "linear"}, "schedule must be one of .*, not 'linear'"),
        (CalibrationConfig, {**CALIBRATE, "mode": "sprase"}, "mode must be one of .*, not 'sprase'"),
        (CalibrationConfig, {**CALIBRATE, "formats": ["pt2", "pt3"]}, "formats must be one of .*, not 'pt3'"),
        (partial(Term, "ours", 1.0, abs), {"sees": "pixel"}, "term 'ours': sees must be one of .*, not 'pixel'"),
    ],
)
def test_python_code_gets_no_other_choices_than_the_command_line(
    config_class: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class(**settings)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (
            SynthesisConfig,
            {"output": Path("runs")},
            r"^output must be text, not PosixPath\(.runs.\): give str\(\.\.\.\)",
        ),
        (SynthesisConfig, {"images_per_class": 2.0}, "^images_per_class must be an integer, not 2.0$"),
        (
            SynthesisConfig,
            {"seed": np.int64(1)},
            r"^seed must be an integer, not np\.int64\(1\): give \.tolist\(\)",
        ),
        (SynthesisConfig, {"classes": range(3)}, r"^classes must be a list or text or None, not range\(0, 3\)$"),
        (SynthesisConfig, {"dry_run": "false"}, "^dry_run must be True or False, not 'false'$"),
        (SynthesisConfig, {"inversion": {"lr": 1}}, r"^inversion must be a InversionConfig, not \{'lr': 1\}$"),
        (InversionConfig, {"betas": (0.5,)}, r"^betas must be a list of 2, each of which is a number, not \(0.5,\)"),
        (
            InversionConfig,
            {"stop_steps": [5.5]},
            r"^stop_steps must be a list, .* is an integer, not \[5.5\]",
        ),
        (InversionConfig, {"iterations": True}, "^iterations must be an integer, not True$"),
        (ModelConfig, {"name": Path("x")}, "^name must be text, not PosixPath"),
        (PoolConfig, {"fallback": [{"a": "b"}, 1]}, "^pool.fallback must be a list, each of which is a dict, not"),
        (WorkersConfig, {"size": 1.0}, "^workers.size must be an integer, not 1.0$"),
        (
            CalibrationConfig,
            {**CALIBRATE, "images": [Path("a")]},
            r"^images must be text or a list, .* is text, not ",
        ),
        (
            CalibrationConfig,
            {**CALIBRATE, "settings": ["w4a8"]},
            "^settings must be a list, .* is a BitWidths, not ",
        ),
        (BitWidths, {"weights": 4.0}, "^weights must be an integer, not 4.0$"),
        (StudentConfig, {"depth_pruned": 2}, "^student.depth_pruned must be a list, .* is an integer or None, not 2$"),
        (EvaluationConfig, {"labeled": Path("a"), "teacher": TEACHER}, "^labeled must be text, not PosixPath"),
        (TrackingConfig, {"tensorboard": Path("a")}, "^tracking.tensorboard must be text or None, not PosixPath"),
        (CompactionConfig, {"images": "a", "output": Path("b")}, "^output must be text, not PosixPath"),
        (StatusConfig, {"uri": Path("a")}, "^uri must be text, not PosixPath"),
    ],
)
def test_python_code_gets_no_other_types_than_the_command_line(
    config_class: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    needed = {"teacher": TEACHER, "output": "o", "images_per_class": 1} if config_class is SynthesisConfig else {}
    with pytest.raises(ConfigError, match=message):
        config_class(**{**needed, **settings})


def test_lists_and_tuples_stand_for_each_other_and_integers_for_numbers() -> None:
    given: dict[str, Any] = {"betas": [0, 0.9], "stop_steps": (5,), "stop_fractions": (0.5,), "lr": 1}
    config = InversionConfig(**given)
    assert to_dict(config) == to_dict(InversionConfig(betas=(0, 0.9), stop_steps=[5], stop_fractions=[0.5], lr=1))
    assert ModelConfig(name="tiny", class_names=["a"], mean=(0, 0.5, 1)).mean == (0, 0.5, 1)  # type: ignore[arg-type]


def test_a_choice_may_be_left_out_where_none_is_one() -> None:
    assert Term("ours", 1.0, abs).network is None
    assert InversionConfig(ranking="pool_attention").ranking == "pool_attention"
