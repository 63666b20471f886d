"""The command `sparse-inversion`."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from jobs import cli


def test_every_job_of_the_list_is_there_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    for name, job in cli.JOBS.items():
        assert f"  {name}" in usage
        assert callable(importlib.import_module(f"jobs.{name}").main)
        module, _, config_class = job.config.partition(":")
        assert getattr(importlib.import_module(module), config_class).__doc__


def test_a_job_runs_with_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["invert"], ["completion"], ["completion", "fish"]])
def test_a_wrong_command_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert "error: " in capsys.readouterr().err


def test_the_installed_command_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="sparse-inversion")
    assert script.load() is cli.main


def test_tab_completes_the_settings_of_a_job(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.cli", "completion", "bash"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = tmp_path / "completion.bash"
    script.write_text(done.stdout)
    typed = "source $0; COMP_WORDS=(sparse-inversion synthesize --inversion.re); COMP_CWORD=2; _shtab_sparse_inversion"
    shell = ["bash", "-c", f'{typed}; echo "${{COMPREPLY[@]}}"', str(script)]
    assert subprocess.run(shell, capture_output=True, text=True).stdout.split() == ["--inversion.rebirth"]
