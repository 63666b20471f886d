"""The Grafana dashboard: as Grafana's own types read it, and as Prometheus answers its queries about a real run."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from pipeline.synthesis import synthesize
from tests.synthesis.conftest import make_config

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "examples/grafana/synthesis.json").read_text())
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
QUERIES: dict[str, str] = {
    panel["title"]: target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
}
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs `prometheus` on the PATH, as of Debian's package of that name"
)


def lost(given: Any, kept: Any, where: str = "") -> list[str]:
    """Return where plain data has what its copy lacks, or has another way."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [place for name in given for place in lost(given[name], kept.get(name), f"{where}/{name}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            place
            for index, pair in enumerate(zip(given, kept, strict=True))
            for place in lost(*pair, f"{where}/{index}")
        ]
    return [] if given == kept else [where]


def through_grafana(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Read and write a dashboard with types that Grafana generates from its schema: what these do not know is gone."""
    package = "grafana_foundation_sdk"
    dashboards = pytest.importorskip(f"{package}.models.dashboard", reason="needs the package grafana-foundation-sdk")
    import_module(f"{package}.cog.plugins").register_default_plugins()
    encoder = import_module(f"{package}.cog.encoder").JSONEncoder()
    return json.loads(encoder.encode(dashboards.Dashboard.from_json(dashboard)))


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    assert lost(DASHBOARD, through_grafana(DASHBOARD)) == []
    panel, *others = DASHBOARD["panels"]
    wrong = {**DASHBOARD, "panels": [{**panel, "gridpos": panel["gridPos"]}, *others], "colour": "red"}
    assert lost(wrong, through_grafana(wrong)) == ["/panels/0/gridpos", "/colour"]


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_is_promql_of_the_run_that_is_chosen(query: str) -> None:
    promql_parser = pytest.importorskip("promql_parser", reason="needs promql-parser of the extra test")
    selectors: list[Any] = []

    def take(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)

    promql_parser.walk(promql_parser.parse(query), pre_visit=take)
    assert len(selectors) == 1
    assert str(selectors[0].matchers) == '{run=~"$run"}'
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse(query.replace("(", "", 1))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def prometheus(folder: Path) -> Iterator[Callable[..., Any]]:
    """Run Prometheus over all nodes of the session's cluster, and yield what asks its API for data."""
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    scrape = {
        "job_name": "ray",
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "static_configs": [{"targets": nodes}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            ["prometheus", *flags, f"--web.listen-address={address}"], stdout=log, stderr=subprocess.STDOUT
        )

    def ask(path: str, **parameters: str) -> Any:
        with urlopen(f"http://{address}/api/v1/{path}?{urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    try:
        wait_until(lambda: bool(ask("query", query="up")["result"]), (folder / "prometheus.log").read_text)
        yield ask
    finally:
        server.terminate()
        server.wait()


def wait_until(done: Callable[[], bool], say: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while True:
        with suppress(URLError):
            if done():
                return
        assert time.monotonic() < deadline, say()
        time.sleep(0.5)


@needs_prometheus
@pytest.mark.usefixtures("ray_session")
def test_prometheus_answers_every_query_about_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    with prometheus(tmp_path) as ask:
        summary = synthesize(make_config(tiny_folder, tmp_path / "out", seed=2061))
        run = summary["digest"][:8]

        def answers() -> dict[str, dict[str, float]]:
            """Values by the panel's title and the label of its lines."""
            found = {}
            for title, query in QUERIES.items():
                result = ask("query", query=query.replace("$run", run))["result"]
                found[title] = {"".join(line["metric"].values()): float(line["value"][1]) for line in result}
            return found

        wait_until(lambda: all(answers().values()) and answers()["Shards left"] == {run: 0}, answers)
        found = answers()
        assert found["Shards ended"] == {"made": 6}
        written = sum(part.stat().st_size for part in (tmp_path / "out" / "data").iterdir())
        assert found["Bytes written"] == {run: written}
        seconds = sum(pq.read_table(tmp_path / "out" / "index.parquet")["seconds"].to_pylist())
        assert found["Actor-hours of inversion"] == {run: pytest.approx(seconds / 3600, rel=1e-3)}
        assert all(set(lines) == {run} for title, lines in found.items() if title != "Shards ended")
        (query,) = [variable["query"] for variable in VARIABLES if variable["name"] == "run"]
        metric, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
        assert run in ask(f"label/{label}/values", **{"match[]": metric})
