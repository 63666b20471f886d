"""Output on an object store: a server that speaks S3, in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from jobs import status
from tests.synthesis.conftest import Made, start, write_config


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment that leads to an object store with a bucket `made`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="made")
    S3FileSystem.clear_instance_cache()
    yield env
    S3FileSystem.clear_instance_cache()
    server.stop()


SCRIPT = """
import json, sys
from pipeline.config import parse_config
from pipeline.dataset import read_images
from pipeline.synthesis import SynthesisConfig, synthesize

config = parse_config(SynthesisConfig, ["--config", sys.argv[1]])
summary = synthesize(config)
rows = read_images(config.output).take_all()
print(json.dumps({**summary, "rows": len(rows), "shape": rows[0]["image"].shape}))
"""


@pytest.mark.usefixtures("ray_session")
def test_output_on_an_object_store(
    made: Made, tiny_folder: Path, tmp_path: Path, s3: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, tiny_folder, "s3://made/here", pool={"device": "cpu"})
    process = start(["-c", SCRIPT, str(file)], s3)
    out, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert json.loads(out)["rows"] == 30
    assert json.loads(out)["shape"] == [32, 32, 3]
    store = S3FileSystem()
    assert {
        f"data/{path.rpartition('/')[2]}": store.cat_file(path) for path in store.ls("made/here/data")
    } == made.parts
    assert sorted(path.removeprefix("made/here/") for path in store.ls("made/here")) == [
        "contact_sheet.png",
        "data",
        "manifest.json",
    ]
    assert status.main(["s3://made/here"]) == 0
    store.rm_file(store.ls("made/here/data")[1])
    assert status.main(["s3://made/here"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == [1]
