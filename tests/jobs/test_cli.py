"""The command `sparse-inversion`."""

import importlib
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from jobs import cli


def test_every_job_of_the_list_is_there_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    for name, job in cli.JOBS.items():
        assert f"  {name}" in usage
        assert callable(importlib.import_module(f"jobs.{name}").main)
        module, _, config_class = job.config.partition(":")
        assert getattr(importlib.import_module(module), config_class).__doc__


COMMANDS = [(name, line) for name in cli.JOBS for line in cli.examples_of(name)]


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_each_example_is_a_command_that_the_job_takes(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    python, m, module, *flags = shlex.split(line)
    assert (python, m, module) == ("python", "-m", f"jobs.{name}")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*flags, "--print_config"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", cli.JOBS)
def test_help_ends_with_examples_each_whole_on_its_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.JOBS[name].examples
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    text, _, examples = capsys.readouterr().out.partition("\nExamples:\n\n")
    assert examples.splitlines() == [f"  {line}" for line in cli.examples_of(name)]
    # All else is broken at the width of the terminal.
    assert max(map(len, text.partition("--config CONFIG]")[2].rpartition("Every job")[2].splitlines())) <= 80


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
