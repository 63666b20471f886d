"""Run a command when the cloud is about to take this spot machine away.

Ray's launcher does not listen for that notice, so `cluster.yaml` starts this on each worker:

    python -m pipeline.spot_notice aws ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ...

It needs nothing but Python, and ends with the command.
"""

import argparse
import http.client
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

# EC2 gives two minutes' notice, Google half a minute.
_PAUSE_S = 5.0
_ANSWER_TIMEOUT_S = 5.0


def aws_notice(metadata: str) -> bool:
    """Ask EC2's metadata service (IMDSv2) whether this machine will be stopped or terminated.

    Args:
        metadata: address of the service.

    Raises:
        OSError: it does not answer.
    """
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{metadata}/latest/api/token", ttl, method="PUT")
    try:
        _ask(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise
    return True


def gcp_notice(metadata: str) -> bool:
    """Ask Google's metadata service whether this machine is being preempted; for the arguments see `aws_notice`."""
    url = f"{metadata}/computeMetadata/v1/instance/preempted"
    return _ask(url, {"Metadata-Flavor": "Google"}).strip() == "TRUE"


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    # A proxy is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
        return answer.read().decode()


CLOUDS: dict[str, tuple[Callable[[str], bool], str]] = {
    "aws": (aws_notice, "http://169.254.169.254"),
    "gcp": (gcp_notice, "http://metadata.google.internal"),
}


def wait_for_notice(cloud: str, metadata: str | None = None, *, pause_s: float = _PAUSE_S) -> None:
    """Return once this machine is about to be taken away.

    Args:
        cloud: `aws` or `gcp`.
        metadata: address of the metadata service, if it is another than the cloud's own.
        pause_s: seconds between two questions.
    """
    has_notice, address = CLOUDS[cloud]
    address, silent = metadata or address, False
    while True:
        try:
            if has_notice(address):
                return
            silent = False
        except (OSError, http.client.HTTPException) as error:
            if not silent:
                _say(f"{address} gives no answer, asking again every {pause_s:g} s: {error}")
            silent = True
        time.sleep(pause_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Wait, run the command, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.spot_notice", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("cloud", choices=sorted(CLOUDS))
    parser.add_argument("--metadata", help="address of the metadata service")
    parser.add_argument("--pause_s", type=float, default=_PAUSE_S, help="seconds between two questions")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, and its arguments")
    given = parser.parse_args(argv)
    if not given.command:
        parser.error("give a command to run")
    wait_for_notice(given.cloud, given.metadata, pause_s=given.pause_s)
    _say(f"this machine will be taken away, running {given.command[0]}")
    return subprocess.run(given.command).returncode


def _say(line: str) -> None:
    print(f"spot_notice: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
