"""Metrics of a run, as Prometheus would read them, and the dashboard that draws them."""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from pipeline.synthesis import synthesize
from pipeline.synthesis.metrics import RunMetrics
from pipeline.synthesis.outcome import Outcome
from pipeline.workers.progress import reporting
from tests.synthesis.conftest import make_config

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "synthesis.json"
MADE: dict[str, Any] = {"num_images": 5, "bytes": 1000, "seconds": 1.5, "store_s": 0.25, "class_loss": 0.5}


def exported_by_run() -> dict[str, dict[str, float]]:
    """Return the values that the cluster's nodes export, by the label of their run."""
    found: dict[str, dict[str, float]] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if of_run := re.search(r'run="(\w+)"', line):
                    name, value = line.rsplit(" ", 1)
                    by = re.search(r'outcome="(\w+)"', name)
                    values = found.setdefault(of_run[1], {})
                    values[name.partition("{")[0] + (f" {by[1]}" if by else "")] = float(value)
    return found


def exported(run: str) -> dict[str, float]:
    """Return the values of a run that the cluster's nodes export."""
    return exported_by_run().get(run, {})


def wait_for(run: str, has_come: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Return what is exported once it is as it should be, or what was exported after a minute."""
    deadline = time.monotonic() + 60
    while not has_come(found := exported(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def asked_for() -> set[str]:
    """Return the metrics that the dashboard draws."""
    return set(re.findall(r"ray_sparse_inversion_\w+", DASHBOARD.read_text()))


@pytest.mark.usefixtures("ray_session")
def test_prometheus_reads_what_a_run_did_for_as_long_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workers.progress._INTERVAL_S", 1.0)
    made = [Outcome(0, "a", **MADE), Outcome(1, "a", **MADE)]
    gauges = {"ray_sparse_inversion_class_loss": 0.5, "ray_sparse_inversion_shards_left": 4}
    counters = {
        "ray_sparse_inversion_shards_total made": 2,
        "ray_sparse_inversion_shards_total failed": 1,
        "ray_sparse_inversion_shards_total by_another": 1,
        "ray_sparse_inversion_images_total": 10,
        "ray_sparse_inversion_inverting_seconds_total": 3.0,
        "ray_sparse_inversion_storing_seconds_total": 0.5,
        "ray_sparse_inversion_written_bytes_total": 2000,
    }
    metrics = RunMetrics("deadbeef" * 8, 8)
    with reporting(metrics.repeat_gauges):
        for each in (*made, Outcome(2, "b", error="OSError"), Outcome(3, "b", by_another=True)):
            metrics.add(each)
        assert wait_for("deadbeef", lambda found: found == counters | gauges) == counters | gauges
        # Ray drops a gauge that nobody sets again after two of its intervals.
        time.sleep(8)
        assert exported("deadbeef") == counters | gauges
    assert wait_for("deadbeef", lambda found: found == counters) == counters
    assert asked_for() == {name.partition(" ")[0] for name in counters | gauges}


def test_a_real_run_exports_every_metric_that_the_dashboard_asks_for(
    tiny_folder: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.workers.progress._INTERVAL_S", 1.0)
    seen: dict[str, dict[str, float]] = {}

    def look(seconds: float) -> None:
        for run, values in exported_by_run().items():
            seen.setdefault(run, {}).update(values)
        time.sleep(seconds)

    # Ray exports a gauge for some seconds only.
    with ThreadPoolExecutor(1) as beside:
        run = beside.submit(synthesize, make_config(tiny_folder, tmp_path / "dataset", images_per_class=1))
        while not run.done():
            look(0.5)
    digest, deadline = run.result()["digest"][:8], time.monotonic() + 60
    while seen.get(digest, {}).get("ray_sparse_inversion_shards_left") != 0 and time.monotonic() < deadline:
        look(0.5)
    assert {name.partition(" ")[0] for name in seen[digest]} == asked_for()
    assert seen[digest]["ray_sparse_inversion_shards_total made"] == 2
    assert seen[digest]["ray_sparse_inversion_shards_left"] == 0


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) == 8 * 12 * 8
