"""Run a command each time the cloud gives notice that it will take this spot machine away.

Ray's launcher does not listen for that notice, so `cluster.yaml` starts this on each worker:

    python -m pipeline.spot_notice aws ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ...

It needs nothing but Python, and runs until the machine is taken: a notice may be withdrawn, and another may follow.
"""

import argparse
import http.client
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import NoReturn

# EC2 gives two minutes' notice, Google half a minute.
_PAUSE_S = 5.0
_ANSWER_TIMEOUT_S = 5.0


def aws_notice(metadata: str) -> str:
    """Ask EC2's metadata service (IMDSv2) whether this machine will be stopped or terminated.

    Args:
        metadata: address of the metadata service.

    Returns:
        The notice, with its time; empty if there is none.

    Raises:
        OSError: the service does not answer.
    """
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{metadata}/latest/api/token", ttl, method="PUT")
    try:
        return _ask(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


def gcp_notice(metadata: str) -> str:
    """Ask Google's metadata service whether this machine is being preempted; see `aws_notice`."""
    answer = _ask(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}).strip()
    return answer if answer == "TRUE" else ""


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    # Without a proxy: proxies are for the world outside, and the service is inside the machine's network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
        return answer.read().decode()


CLOUDS: dict[str, tuple[Callable[[str], str], str]] = {
    "aws": (aws_notice, "http://169.254.169.254"),
    "gcp": (gcp_notice, "http://metadata.google.internal"),
}


def watch(cloud: str, act: Callable[[], bool], metadata: str | None = None, *, pause_s: float = _PAUSE_S) -> NoReturn:
    """Act once on each notice, and again until that succeeds; never returns.

    Args:
        cloud: `aws` or `gcp`.
        act: function that acts on a notice and returns whether it succeeded.
        metadata: address of the metadata service; by default that of the cloud.
        pause_s: seconds between two questions.
    """
    ask, address = CLOUDS[cloud]
    address, silent, done = metadata or address, False, ""
    while True:
        try:
            notice = ask(address)
            silent = False
        except (OSError, http.client.HTTPException) as error:
            if not silent:
                _say(f"{address} gives no answer, asking again every {pause_s:g} s: {error}")
            silent, notice = True, done
        if done and not notice:
            _say("the notice was withdrawn")
        # A notice with another time is another notice.
        done = notice if notice == done or (notice and act()) else ""
        time.sleep(pause_s)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Watch, and run the command on each notice."""
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
    watch(given.cloud, lambda: _run(given.command), given.metadata, pause_s=given.pause_s)


def _run(command: Sequence[str]) -> bool:
    _say(f"this machine will be taken away, running {command[0]}")
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"trying again: {error}")
        return False
    return True


def _say(line: str) -> None:
    print(f"spot_notice: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
