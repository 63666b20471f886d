"""Rules of the project as a whole: direction of imports, pinned versions, set-up commands, the README's file tree."""

import ast
import graphlib
import importlib.metadata
import os
import re
import stat
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

ROOT = Path(__file__).parents[1]

# What each part of `pipeline` may import of it, besides itself. Jobs may import everything.
ALLOWED = {
    "artifacts": "checks documents errors file_kinds log models storage transient",
    "checks": "errors",
    "cluster": "errors log",
    "config": "credentials documents errors log",
    "credentials": "",
    "dataset": "checks config documents errors file_kinds lazy log pictures storage transient",
    "documents": "",
    "errors": "credentials transient",
    "file_kinds": "",
    "inputs": "dataset errors log models vit",
    "inversion": "checks errors masking out_of_memory torch_modes vit",
    "lazy": "",
    "log": "credentials",
    "masking": "errors trial vit",
    "models": "checks documents errors file_kinds masking pictures storage torch_modes trial vit",
    "out_of_memory": "errors",
    "outputs": "config credentials dataset errors log storage transient",
    "pictures": "",
    "report": "credentials errors log pictures storage",
    "storage": "credentials documents errors file_kinds log transient",
    "torch_modes": "",
    "tracking": "checks credentials errors log storage",
    "transient": "",
    "trial": "errors",
    "vit": "errors trial",
    "vit.families": "errors trial",
    "vit.last_block": "",
    "workers": "checks cluster credentials errors log models storage",
}


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(module: str) -> list[Path]:
    path = ROOT / module.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_run_one_way(module: str) -> None:
    allowed = {f"pipeline.{name}" for name in (module, *ALLOWED[module].split())}
    for path in files_of(f"pipeline.{module}"):
        for name in imports(path):
            if name.split(".")[0] in ("pipeline", "jobs", "examples"):
                whole = {".".join(name.split(".")[:length]) for length in range(2, name.count(".") + 2)}
                # `from pipeline import storage` names the package, then the module.
                assert whole & allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("folder", "above"), [("pipeline", ("jobs", "examples", "benchmarks")), ("jobs", ("examples", "benchmarks"))]
)
def test_nothing_imports_what_stands_above_it(folder: str, above: tuple[str, ...]) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not [name for name in imports(path) if name.split(".")[0] in above], path


def module_of(name: str) -> str | None:
    """The module of the project that a name is, or lies in."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts[:length])
    return None


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {}
    for folder in ("pipeline", "jobs", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            graph[module] = {module_of(name) for name in imports(path)} - {None, module}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph) > 100


@pytest.mark.parametrize("folder", ["pipeline", "jobs", "benchmarks", "examples"])
def test_modules_and_functions_stay_short(folder: str) -> None:
    paths = list((ROOT / folder).rglob("*.py"))
    assert [str(path) for path in paths if len(path.read_text().splitlines()) > 300] == []
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    assert statistics.quantiles(lengths, n=10)[-1] <= 25


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("pipeline.inversion, pipeline.models", "ray"),
        ("pipeline.dataset.conversion, pipeline.dataset.schema, pipeline.tracking.tracker", "torch"),
        ("jobs.status", "torch ray"),
        ("pipeline.quantization.config, pipeline.synthesis.run, pipeline.synthesis.guard", "torchao tensorboardX"),
    ],
)
def test_import_stays_light(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; sys.exit(not sys.modules.keys().isdisjoint({absent.split()}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in (project["dependencies"], *extras) for text in group]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_everything_asked_for_is_pinned_within_bounds() -> None:
    pins = constraints()
    for requirement in requirements():
        if requirement.name != "sparse-inversion":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def needed_by(requirement: Requirement) -> list[Requirement]:
    """Return what an installed package needs here, with the extras asked for."""
    needs = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or []]
    extras = requirement.extras or {""}
    return [need for need in needs if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)]


def test_everything_that_gets_installed_is_pinned() -> None:
    pins = constraints()
    waiting = [need for need in requirements() if need.name != "sparse-inversion"]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if (key := f"{requirement.name}{sorted(requirement.extras)}") in seen:
            continue
        seen.add(key)
        assert canonicalize_name(requirement.name) in pins, f"no version for {requirement.name}"
        waiting += needed_by(requirement)
    assert len(seen) > 100


def test_torchvision_is_the_one_made_for_the_pinned_torch() -> None:
    pins = constraints()
    needs = [Requirement(text) for text in importlib.metadata.requires("torchvision") or []]
    assert importlib.metadata.version("torchvision").split("+")[0] == pins["torchvision"]
    assert next(need for need in needs if need.name == "torch").specifier.contains(pins["torch"])


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_old_python_is_reported_clearly(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.12\nexit 1\n')
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert f"Python 3.11 or newer is needed, '{python}' is Python 3.10.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_folders_and_files_that_the_readme_names_are_there() -> None:
    section = (ROOT / "README.md").read_text().partition("## Where to look in the code")[2]
    folders: list[str] = []
    for line in section.split("```")[1].splitlines()[1:]:
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        assert (ROOT / "".join(folders)).exists(), line
    named = re.findall(r"`(\S+/\S+)`", section)
    assert len(named) >= 6
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_a_submitted_job_leaves_history_environment_and_outputs_behind(tmp_path: Path) -> None:
    for name in (".gitignore", ".rayignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in (".git/objects/pack", ".venv/bin/python", "runs/x/manifest.json", "jobs/synthesize.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    left_out = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    files = {file.relative_to(tmp_path).as_posix(): file for file in tmp_path.rglob("*") if file.is_file()}
    sent = {name for name, file in files.items() if not any(ignores(file) for ignores in left_out)}
    assert sent == {".gitignore", ".rayignore", "jobs/synthesize.py"}
