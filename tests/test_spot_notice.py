"""The watcher of spot notices, against a server that plays the metadata services of EC2 and Google."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Metadata(BaseHTTPRequestHandler):
    """EC2's service, which gives a token to whoever puts a time to live, and Google's, which wants its name said."""

    server: "Server"

    def do_PUT(self) -> None:
        valid = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if valid else 400, "token-7")

    def do_GET(self) -> None:
        self.server.asked += 1
        noticed = self.server.asked > self.server.quiet
        if self.path == "/latest/meta-data/spot/instance-action":
            trusted = self.headers["X-aws-ec2-metadata-token"] == "token-7"
            action = '{"action": "terminate", "time": "2026-11-27T08:22:00Z"}'
            self._answer(401 if not trusted else 200 if noticed else 404, action)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            trusted = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if trusted else 403, "TRUE" if noticed else "FALSE")
        else:
            self._answer(404, "")

    def _answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    asked = 0
    # Questions before the notice is there.
    quiet = 2


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def watch(cloud: str, port: int, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    options = [f"--metadata=http://127.0.0.1:{port}", "--pause_s=0.05"]
    watcher = [sys.executable, "-m", "pipeline.spot_notice", *options, cloud, *command]
    return subprocess.run(watcher, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_command_runs_when_the_notice_comes(cloud: str, server: Server) -> None:
    done = watch(cloud, server.server_port, sys.executable, "-c", "print('drained', flush=True); raise SystemExit(3)")
    assert (done.returncode, done.stdout) == (3, "drained\n")
    assert server.asked == 3
    assert done.stderr.count("\n") == 1
    assert "this machine will be taken away" in done.stderr


def test_a_silent_service_is_reported_once_and_asked_again() -> None:
    # Nothing listens on the port of a server that has closed.
    with Server(("127.0.0.1", 0), Metadata) as closed:
        port = closed.server_port
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        watch("aws", port, "true", timeout_s=10)
    assert (expired.value.stderr or b"").decode().count("gives no answer, asking again every 0.05 s") == 1


def test_without_a_command_there_is_nothing_to_wait_for() -> None:
    done = watch("aws", 1)
    assert done.returncode == 2
    assert "give a command to run" in done.stderr
