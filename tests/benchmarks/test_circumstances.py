"""Facts about the machine in a benchmark's line of figures."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.circumstances import circumstances, described, instruction_sets

ROOT = Path(__file__).parents[2]


def test_a_line_names_the_instruction_sets_of_the_processor_and_what_torch_uses() -> None:
    line = circumstances("benchmarks.inversion", torch.device("cpu"))
    assert line["instruction_sets"] == instruction_sets()
    assert line["torch_cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    if line["torch_cpu_capability"] == "AVX2":
        assert "avx2" in line["instruction_sets"]


def test_a_torch_that_is_held_to_less_is_reported_apart_from_the_processor() -> None:
    code = "import torch; from benchmarks.circumstances import circumstances as c; print(c('m', torch.device('cpu')))"
    env = {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'torch_cpu_capability': 'DEFAULT'" in ended.stdout
    assert f"'instruction_sets': {instruction_sets()}" in ended.stdout


def test_unknown_instruction_sets_are_called_unknown() -> None:
    assert described(None) == "instruction sets not recorded"
    assert described(["avx2", "fma"]) == "with avx2, fma"
