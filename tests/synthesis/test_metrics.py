"""Metrics of a run, as Prometheus would read them, and the dashboard that draws them."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from pipeline.synthesis.metrics import RunMetrics
from pipeline.synthesis.outcome import Outcome
from tests.synthesis.conftest import Made

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "synthesis.json"
MADE: dict[str, Any] = {"num_images": 5, "bytes": 1000, "seconds": 1.5, "store_s": 0.25, "class_loss": 0.5}


def exported(run: str) -> dict[str, float]:
    """Return the values with this label that the cluster's nodes export."""
    found: dict[str, float] = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if f'run="{run}"' in line:
                    name, value = line.rsplit(" ", 1)
                    by = re.search(r'outcome="(\w+)"', name)
                    found[name.partition("{")[0] + (f" {by[1]}" if by else "")] = float(value)
    return found


@pytest.mark.usefixtures("ray_session")
def test_prometheus_reads_what_a_run_did_and_the_dashboard_asks_for_it() -> None:
    metrics = RunMetrics("deadbeef" * 8, 8)
    made = [Outcome(0, "a", **MADE), Outcome(1, "a", **MADE)]
    for each in (*made, Outcome(2, "b", error="OSError"), Outcome(3, "b", by_another=True)):
        metrics.add(each)
    expected = {
        "ray_sparse_inversion_shards_total made": 2,
        "ray_sparse_inversion_shards_total failed": 1,
        "ray_sparse_inversion_shards_total by_another": 1,
        "ray_sparse_inversion_images_total": 10,
        "ray_sparse_inversion_inverting_seconds_total": 3.0,
        "ray_sparse_inversion_storing_seconds_total": 0.5,
        "ray_sparse_inversion_written_bytes_total": 2000,
        "ray_sparse_inversion_class_loss": 0.5,
        "ray_sparse_inversion_shards_left": 4,
    }
    deadline = time.monotonic() + 90
    while (found := exported("deadbeef")) != expected and time.monotonic() < deadline:
        time.sleep(1)
    assert found == expected
    asked = set(re.findall(r"ray_sparse_inversion_\w+", DASHBOARD.read_text()))
    assert asked == {name.partition(" ")[0] for name in expected}


def test_a_real_run_exports_every_metric_that_the_dashboard_asks_for(made: Made) -> None:
    asked = set(re.findall(r"ray_sparse_inversion_\w+", DASHBOARD.read_text()))
    deadline = time.monotonic() + 90
    # Ray exports every ten seconds, so what is read first may be of the middle of the run.
    while True:
        found = exported(made.summary["digest"][:8])
        missing = asked - {name.partition(" ")[0] for name in found}
        num_made = found.get("ray_sparse_inversion_shards_total made", 0)
        if (not missing and num_made >= 6) or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert not missing
    assert num_made >= 6


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) == 8 * 12 * 8
