"""A new loss on pixels takes a function and a setting, as docs/extending.md says: its worked example is run here."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from pipeline.inversion import InversionConfig, Teacher, build_terms, invert, losses
from tests.extending import python_blocks

SHORT = {"iterations": 12, "stop_steps": [3], "stop_fractions": [0.3]}


def test_a_loss_on_pixels_is_a_function_and_a_setting(tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    code, setting = python_blocks("A loss on pixels")
    module: dict[str, Any] = {**vars(losses)}
    exec(code, module)
    monkeypatch.setattr(losses, "pixel_losses", module["pixel_losses"])
    (name,) = re.findall(r"(\w+): float = _weight", setting)
    config_class = dataclasses.make_dataclass(
        "InversionConfig",
        [(name, float, dataclasses.field(default=0.0, metadata={"weight": True}))],
        bases=(InversionConfig,),
        frozen=True,
        kw_only=True,
    )

    def last(weight: float) -> float:
        config = config_class(**SHORT, **{name: weight})
        assert [term.name for term in build_terms(config)] == ["class_loss", "tv_l2", name]
        result = invert(tiny_teacher, torch.tensor([3, 7]), config, seeds=[0, 1])
        return float(result.losses[name][-1])

    assert last(50.0) < 0.7 * last(1e-9)
    assert [term.name for term in build_terms(config_class(**SHORT))] == ["class_loss", "tv_l2"]


def test_a_loss_in_ones_own_code(tiny_model: torch.nn.Module) -> None:
    (code,) = python_blocks("A loss in your own code")
    module: dict[str, Any] = {"model": tiny_model}
    exec(code.replace("iterations=400", f"**{SHORT}"), module)
    assert list(module["result"].losses) == ["class_loss", "tv_l2", "entropy"]
