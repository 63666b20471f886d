"""The head of a cluster falls silent: one line, and another when it answers again."""

import socket
import threading
import time

import pytest

from pipeline.cluster.head import answers, watch_while


def listen(port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(100)
    return listener


def wait_for(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    said, deadline = "", time.monotonic() + 20
    while words not in said:
        assert time.monotonic() < deadline, said
        said += capsys.readouterr().err
        time.sleep(0.02)
    return said


def test_a_head_that_falls_silent_is_reported_once_and_so_is_its_return(capsys: pytest.CaptureFixture[str]) -> None:
    head, joined = listen(), threading.Event()
    port = head.getsockname()[1]
    address = f"127.0.0.1:{port}"
    joined.set()
    watching = threading.Thread(target=watch_while, args=(address, joined.is_set), kwargs={"look_s": 0.02})
    watching.start()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
    head.close()
    said = wait_for("run it again for the rest", capsys)
    time.sleep(0.2)
    assert (said + capsys.readouterr().err).count(f"error: the head of the Ray cluster, {address}, does not") == 1
    with listen(port):
        wait_for(f"{address}, answers again", capsys)
        joined.clear()
        watching.join(timeout=20)
    assert not watching.is_alive()


def test_an_address_that_nothing_listens_at_does_not_answer() -> None:
    with listen() as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert answers(address, timeout_s=5)
    assert not answers(address, timeout_s=5)
