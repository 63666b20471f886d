"""The watcher of spot notices, against a server that plays the metadata services of EC2 and Google."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
        notice = next(self.server.notices, self.server.last)
        self.server.last = notice
        if self.path == "/latest/meta-data/spot/instance-action":
            trusted = self.headers["X-aws-ec2-metadata-token"] == "token-7"
            action = f'{{"action": "terminate", "time": "{notice}"}}'
            self._answer(401 if not trusted else 200 if notice else 404, action)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            trusted = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if trusted else 403, "TRUE" if notice else "FALSE")
        else:
            self._answer(404, "")

    def _answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Gives notices with these times, one after another, and the last one from then on; without a time there is none.

    It is asked by one watcher, one question after another.
    """

    notices: Iterator[str] = iter(())
    last = ""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def watch(cloud: str, port: int, *command: str) -> Iterator[subprocess.Popen[str]]:
    options = [f"--metadata=http://127.0.0.1:{port}", "--pause_s=0.05"]
    watcher = [sys.executable, "-m", "pipeline.spot_notice", *options, cloud, *command]
    process = subprocess.Popen(watcher, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def drained(watcher: subprocess.Popen[str], times: int) -> list[str]:
    """Wait until the watcher has run its command `times` times, and return the watcher's own lines."""
    assert watcher.stdout
    assert watcher.stderr
    for _ in range(times):
        assert watcher.stdout.readline() == "drained\n"
    # It goes on, and does not run the command for the same notice again.
    with pytest.raises(subprocess.TimeoutExpired):
        watcher.wait(1)
    watcher.kill()
    assert watcher.stdout.read() == ""
    return watcher.stderr.read().splitlines()


DRAIN = (sys.executable, "-c", "print('drained', flush=True)")


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_command_runs_once_when_the_notice_comes(cloud: str, server: Server) -> None:
    server.notices = iter(["", "", "8:22"])
    with watch(cloud, server.server_port, *DRAIN) as watcher:
        (line,) = drained(watcher, times=1)
    assert "this machine will be taken away" in line


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_notice_after_one_that_was_withdrawn_is_another(cloud: str, server: Server) -> None:
    server.notices = iter(["8:22", "8:22", "", "9:41"])
    with watch(cloud, server.server_port, *DRAIN) as watcher:
        lines = drained(watcher, times=2)
    assert ["withdrawn" in line for line in lines] == [False, True, False]


def test_so_is_one_with_another_time(server: Server) -> None:
    server.notices = iter(["8:22", "8:22", "9:41"])
    with watch("aws", server.server_port, *DRAIN) as watcher:
        assert len(drained(watcher, times=2)) == 2


def test_a_command_that_fails_is_run_again(server: Server, tmp_path: Path) -> None:
    server.notices = iter(["8:22"])
    fails_once = (
        "import os, sys; there = os.path.exists(sys.argv[1]); open(sys.argv[1], 'w'); there or sys.exit(3); "
        "print('drained', flush=True)"
    )
    with watch("aws", server.server_port, sys.executable, "-c", fails_once, str(tmp_path / "tried")) as watcher:
        lines = drained(watcher, times=1)
    assert "trying again: " in lines[1]
    assert "exit status 3" in lines[1]


def test_a_silent_service_is_reported_once_and_asked_again() -> None:
    # Nothing listens on the port of a server that has closed.
    with Server(("127.0.0.1", 0), Metadata) as closed:
        port = closed.server_port
    with watch("aws", port, "true") as watcher:
        assert watcher.stderr
        assert "gives no answer, asking again every 0.05 s" in watcher.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            watcher.wait(1)
        watcher.kill()
        assert watcher.stderr.read() == ""


def test_without_a_command_there_is_nothing_to_wait_for() -> None:
    with watch("aws", 1) as watcher:
        _, said = watcher.communicate(timeout=60)
    assert watcher.returncode == 2
    assert "give a command to run" in said
