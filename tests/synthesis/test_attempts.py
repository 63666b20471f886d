"""Shards and devices when workers fail, without Ray."""

import subprocess
import sys
import time

import pytest

from pipeline.synthesis.attempts import Attempts
from pipeline.synthesis.devices import Device
from pipeline.synthesis.outcome import Outcome

GPU_0, GPU_1, FAR = (Device(node, node, gpu) for node, gpu in (("here", "0"), ("here", "1"), ("far", "0")))


class HereOnly(Attempts):
    """Attempts on a cluster that has lost the node `far`."""

    def _alive_nodes(self) -> set[str]:
        return {"here"}


def make(shard_ids: list[int], *, max_attempts: int = 3, seats: int = 2) -> Attempts:
    attempts = HereOnly(max_attempts)
    attempts.open_pass(shard_ids, seats, fixed_size=True, start_timeout_s=0)
    return attempts


def test_a_shard_that_kills_its_worker_again_and_again_is_given_up() -> None:
    attempts = make([4])
    begun = [attempts.begin("a", GPU_0, 4, "pid 7") for _ in range(4)]
    assert [bool(answer.refusal) for answer in begun] == [False, False, False, True]
    assert begun[0].history == []
    assert begun[1].history == ["worker pid 7 died (GPU 0 of node here (here))"]
    assert begun[3].refusal
    assert begun[3].refusal.error == "WorkerDied"
    assert begun[3].refusal.reason.startswith(
        "given up after 3 attempts (killed for using too much memory, or crashed?): worker pid 7"
    )


def test_a_shard_that_ended_is_not_blamed_for_what_comes_later() -> None:
    attempts = make([4])
    for _ in range(9):
        assert attempts.begin("a", GPU_0, 4, "pid 7").history == []
        attempts.end(GPU_0, 4)


def test_lost_nodes_count_for_less_and_not_for_nothing() -> None:
    attempts = make([4])
    refused = [bool(attempts.begin("a", FAR, 4, "pid 7").refusal) for _ in range(10)]
    assert refused == [False] * 9 + [True]


def test_a_gpu_is_retired_after_errors_of_all_the_actors_that_share_it() -> None:
    attempts = HereOnly(3, actors_per_gpu=2)
    attempts.open_pass([4, 5], 2, fixed_size=True, start_timeout_s=0)
    for number in range(4):
        assert attempts.retired() == {}
        attempts.fail(f"actor {number % 2}", GPU_0, "CUDA error", None)
    assert attempts.retired() == {GPU_0: "CUDA error"}


def test_a_shard_that_fails_on_every_gpu_is_given_up_and_no_gpu_with_it() -> None:
    attempts = make([4, 5])
    for device, given_up in ((GPU_0, False), (GPU_1, False), (GPU_0, True)):
        attempts.begin("a", device, 4, "pid 7")
        assert bool(attempts.fail("a", device, "CUDA error", 4)) is given_up
        attempts.begin("a", device, 5, "pid 7")
        attempts.end(device, 5)
    assert attempts.retired() == {}


@pytest.mark.parametrize("died_last", [True, False])
def test_a_shard_that_killed_a_worker_is_recorded_as_that_whichever_attempt_was_the_last(died_last: bool) -> None:
    attempts = make([4], max_attempts=2)
    attempts.begin("a", GPU_0, 4, "pid 7")
    if died_last:
        assert attempts.fail("a", GPU_0, "CUDA error", 4) is None
        attempts.begin("b", GPU_1, 4, "pid 8")
        refusal = attempts.begin("b", GPU_1, 4, "pid 9").refusal
    else:
        attempts.begin("b", GPU_1, 4, "pid 8")
        refusal = attempts.fail("b", GPU_1, "CUDA error", 4)
    assert refusal
    assert refusal.error == "WorkerDied"
    assert refusal.reason.startswith("given up after 2 attempts (killed for using too much memory, or crashed?): ")
    for device in (GPU_0, GPU_1):
        failing = attempts.begin("a", device, 5, "pid 7").refusal or attempts.fail("a", device, "CUDA error", 5)
    assert failing
    assert failing.error == "DeviceError"
    assert failing.reason.startswith("given up after 2 attempts: GPU 0 of node here (here) failed: CUDA error")


def test_a_node_that_writes_elsewhere_is_retired_with_all_its_devices_and_its_shard_made_by_another() -> None:
    attempts = make([4, 5])
    for worker, device in (("a", GPU_0), ("b", GPU_1), ("c", FAR)):
        attempts.enter(worker, device, f"process of {worker}", loaded=True, turn=0)
    assert taken(attempts, "a", GPU_0, 0) == 4
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    attempts.reject(GPU_0.node, 4, "it is not there")
    assert attempts.retired() == {GPU_0: "it is not there", GPU_1: "it is not there"}
    begun = attempts.take("c", FAR, "process of c", 0)
    assert begun
    assert (begun.shard_id, begun.done) == (4, False)


def test_a_device_of_a_rejected_node_that_is_seen_later_gets_no_work_either() -> None:
    attempts = make([4, 5])
    assert attempts.enter("a", GPU_0, "process of a", loaded=True, turn=0)
    assert taken(attempts, "a", GPU_0, 0) == 4
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    attempts.reject(GPU_0.node, 4, "it is not there")
    assert not attempts.enter("b", GPU_1, "process of b", loaded=True, turn=1)
    assert attempts.retired() == {GPU_0: "it is not there", GPU_1: "it is not there"}
    assert attempts.enter("c", FAR, "process of c", loaded=True, turn=1)
    assert taken(attempts, "c", FAR, 1) == 4


def test_a_worker_that_asks_again_for_its_shard_gets_it_although_its_node_was_rejected_meanwhile() -> None:
    """Otherwise everybody waits for the shard, and nobody works on it."""
    attempts = make([4, 5])
    assert taken(attempts, "a", GPU_0, 0) == 4
    attempts.reject(GPU_0.node, 5, "it is not there")
    assert taken(attempts, "a", GPU_0, 0) == 4


def test_a_worker_that_loaded_while_its_node_was_rejected_takes_nothing() -> None:
    attempts = make([4, 5])
    for worker, device in (("a", GPU_0), ("b", GPU_1)):
        assert attempts.enter(worker, device, f"process of {worker}", loaded=False, turn=0)
    assert taken(attempts, "a", GPU_0, 0) == 4
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    attempts.reject(GPU_0.node, 4, "it is not there")
    assert taken(attempts, "b", GPU_1, 0) is None


def test_a_process_that_ends_itself_is_waited_for_while_ray_starts_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = HereOnly(3)
    attempts.open_pass([4, 5], 2, fixed_size=True, start_timeout_s=900, num_turns=2)
    for turn, (worker, device) in enumerate((("a", GPU_0), ("b", GPU_1))):
        attempts.enter(worker, device, f"process of {worker}", loaded=True, turn=turn)
    attempts.fail("b", GPU_1, "CUDA error", 4)
    attempts.leave("b", GPU_1)
    began = time.monotonic()
    # A process that imports torch.
    monkeypatch.setattr(time, "monotonic", lambda: began + 20)
    assert not attempts.wait("a", 0)
    monkeypatch.setattr(time, "monotonic", lambda: began + 900)
    assert attempts.wait("a", 0)


def test_a_worker_that_storage_keeps_waiting_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = make([4])
    for turn in range(5):
        assert attempts.enter("a", GPU_0, "pid 7", loaded=False, turn=turn)
        assert attempts.still_loads(turn)
        attempts.put_off("a", "SlowDown")
    assert attempts.retired() == {}
    assert attempts.last_errors() == ("", "SlowDown")
    attempts.open_pass([4], 2, fixed_size=True, start_timeout_s=0)
    assert not attempts.still_loads(0)
    assert attempts.last_errors() == ("", "")


def test_a_gpu_is_retired_when_errors_follow_each_other() -> None:
    attempts = make([1, 2])
    for shard_id in (1, 2):
        assert attempts.enter("a", GPU_0, "pid 7", loaded=True, turn=0)
        attempts.begin("a", GPU_0, shard_id, "pid 7")
        attempts.fail("a", GPU_0, f"ECC error {shard_id}", shard_id)
    assert attempts.retired() == {GPU_0: "ECC error 2"}
    assert not attempts.enter("a", GPU_0, "pid 7", loaded=True, turn=0)
    assert attempts.enter("b", GPU_1, "pid 7", loaded=True, turn=0)


def test_a_process_that_dies_while_it_loads_is_its_devices_fault() -> None:
    attempts = make([1])
    assert attempts.enter("a", GPU_0, "pid 7", loaded=False, turn=0)
    assert attempts.enter("a", GPU_0, "pid 7", loaded=False, turn=0)
    assert not attempts.enter("a", GPU_0, "pid 7", loaded=False, turn=0)
    assert attempts.retired() == {GPU_0: "its process died while it loaded the teacher"}
    assert attempts.begin("b", GPU_1, 1, "pid 7").history == []


@pytest.mark.parametrize(
    ("left", "waiting", "released"),
    [
        (2, ["a"], True),  # all turns that are left were given to the one that waits
        (3, ["a"], False),  # another worker is still to come for the third
        (9, ["a", "b"], True),  # nobody else can come
    ],
)
def test_the_worker_of_a_retired_device_waits_until_nobody_else_works(
    left: int, waiting: list[str], released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = HereOnly(3)
    attempts.open_pass(list(range(left)), 2, fixed_size=True, start_timeout_s=900)
    assert [attempts.wait(worker, 0) for worker in waiting] == [False] * len(waiting)
    later = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert attempts.wait("a", 0) is released


def test_it_waits_while_another_works(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = make([1, 2])
    attempts.begin("b", GPU_1, 1, "pid 7")
    later = time.monotonic() + 5000
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not attempts.wait("a", 0)
    attempts.end(GPU_1, 1)
    assert not attempts.wait("a", 0)  # it may begin another at once


def test_what_a_dead_process_worked_on_does_not_keep_retired_workers_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in `benchmarks.chaos`: its next process cannot load the teacher, and takes no shard."""
    attempts = make([4, 5, 6])
    attempts.enter("b", GPU_1, "pid 7", loaded=True, turn=0)
    attempts.begin("b", GPU_1, 4, "pid 7")
    attempts.enter("b", GPU_1, "pid 8", loaded=False, turn=0)
    attempts.fail("b", GPU_1, "the disk did not answer", None)
    assert not attempts.wait("a", 0)
    later = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert attempts.wait("a", 0)
    # The death counts, though the shard was not begun again in its pass.
    attempts.open_pass([4], 2, fixed_size=True, start_timeout_s=0)
    assert attempts.begin("a", GPU_0, 4, "pid 9").history == ["worker pid 7 died (GPU 1 of node here (here))"]


def test_workers_on_a_lost_node_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = make([4, 5])
    attempts.enter("b", FAR, "pid 7", loaded=False, turn=0)
    attempts.enter("c", FAR, "pid 8", loaded=True, turn=0)
    attempts.begin("c", FAR, 4, "pid 8")
    later = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert attempts.wait("a", 0)


@pytest.mark.parametrize(
    "module", ["at_work", "attempts", "blame", "columns", "exit_code", "holders", "records", "shard_queue"]
)
def test_processes_that_need_no_torch_do_not_load_it(module: str) -> None:
    code = f"import sys, pipeline.synthesis.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_two_shards_of_a_dead_worker_the_one_it_inverted_is_blamed() -> None:
    attempts = make([4, 5])
    attempts.begin("a", GPU_0, 4, "pid 7")
    attempts.inverted(GPU_0, 4)
    attempts.begin("a", GPU_0, 5, "pid 7")
    assert attempts.begin("a", GPU_0, 4, "pid 8").history == []
    assert attempts.begin("a", GPU_0, 5, "pid 8").history == ["worker pid 7 died (GPU 0 of node here (here))"]
    # Alone, the one that it wrote is.
    attempts.end(GPU_0, 5, made=Outcome(5, "pid 7"))
    attempts.inverted(GPU_0, 4)
    assert attempts.begin("a", GPU_0, 4, "pid 9").history == ["worker pid 8 died (GPU 0 of node here (here))"]


def taken(attempts: Attempts, worker: str, device: Device, turn: int, name: str = "") -> int | None:
    """The shard that a worker gets when it asks for one."""
    begun = attempts.take(worker, device, name or f"process of {worker}", turn)
    return begun.shard_id if begun else None


def test_shards_are_taken_in_order_whoever_has_the_turn() -> None:
    attempts = make([7, 4, 5])
    for turn, shard_id in ((2, 7), (0, 4), (1, 5)):
        assert taken(attempts, "ab"[turn % 2], GPU_0, turn) == shard_id
        attempts.inverted(GPU_0, shard_id)
    assert taken(attempts, "a", GPU_0, 2) is None


def test_a_shard_that_a_gpu_failed_on_is_the_next_that_another_takes() -> None:
    attempts = make([4, 5, 6, 7])
    assert taken(attempts, "a", GPU_0, 0) == 4
    assert attempts.fail("a", GPU_0, "CUDA error", 4) is None
    # Ray repeats the call if its worker ends before Ray has heard of the row.
    assert taken(attempts, "a", GPU_0, 0, "next process") == 5
    again = attempts.take("b", GPU_1, "pid 9", 1)
    assert again
    assert (again.shard_id, again.attempt) == (4, 2)
    assert taken(attempts, "b", GPU_1, 1) == 6


def test_a_gpu_does_what_it_failed_on_itself_if_nobody_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = make([4, 5])
    assert [taken(attempts, "a", GPU_0, 0), taken(attempts, "b", GPU_1, 1)] == [4, 5]
    attempts.fail("a", GPU_0, "CUDA error", 4)
    later = time.monotonic() + 2
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert taken(attempts, "a", GPU_0, 2) is None  # the other may take it, once it is done with its own
    attempts.end(GPU_1, 5, made=Outcome(5, "pid 7"))
    even_later = later + 2
    monkeypatch.setattr(time, "monotonic", lambda: even_later)
    assert taken(attempts, "a", GPU_0, 2) == 4


def test_a_shard_of_a_worker_that_died_is_the_next_that_anyone_takes() -> None:
    attempts = make([4, 5, 6])
    assert taken(attempts, "a", GPU_0, 0) == 4
    assert attempts.enter("a", GPU_0, "next process", loaded=False, turn=0)
    begun = attempts.take("b", GPU_1, "pid 9", 1)
    assert begun
    assert (begun.shard_id, begun.history) == (4, ["worker process of a died (GPU 0 of node here (here))"])
    assert taken(attempts, "a", GPU_0, 0, "next process") == 5


def test_a_shard_on_a_lost_node_is_given_to_another_though_its_worker_never_comes_back() -> None:
    attempts = make([4, 5])
    assert taken(attempts, "c", FAR, 0) == 4
    later = attempts.take("b", GPU_1, "pid 9", 1)
    assert later
    assert (later.shard_id, later.history) == (
        4,
        ["worker process of c was lost with its node (GPU 0 of node far (far))"],
    )


def test_a_turn_that_ray_repeats_reports_again_what_ended_in_it() -> None:
    """Outcomes are lost with a worker that dies before Ray has heard of the turn's end."""
    attempts = make([4, 5, 6, 7])
    for shard_id, made in (
        (4, Outcome(4, "a")),
        (5, None),
    ):  # 5 failed, as with NaN: it is tried again, and fails again
        assert taken(attempts, "a", GPU_0, 0) == shard_id
        attempts.end(GPU_0, shard_id, made=made)
    assert taken(attempts, "a", GPU_0, 0) == 6
    attempts.enter("a", GPU_0, "next process", loaded=False, turn=0)
    # Whoever takes them, in whatever turn: the repeated one may end after its first row.
    begun = []
    for turn in (0, 0, 1, 1):
        begun.append(attempts.take("a", GPU_0, "next process", turn))
        attempts.inverted(GPU_0, begun[-1].shard_id if begun[-1] else -1)
    assert sorted((each.shard_id, each.done, each.attempt) for each in begun if each) == [
        *((4, True, 1), (5, False, 2), (6, False, 2), (7, False, 1))
    ]
    # Its next turn has nothing to do with them.
    assert taken(attempts, "a", GPU_0, 1, "next process") is None


def test_the_outcome_of_a_shard_that_was_made_is_reported_as_it_was_when_its_worker_died() -> None:
    attempts = make([4, 5])
    assert taken(attempts, "a", GPU_0, 0) == 4
    made = Outcome(4, "pid 7", seconds=7.0, device="NVIDIA L4", num_steps=[8])
    attempts.end(GPU_0, 4, made=made)
    attempts.enter("a", GPU_0, "next process", loaded=False, turn=0)
    begun = attempts.take("a", GPU_0, "next process", 0)
    assert begun
    assert (begun.done, begun.outcome) == (True, made)


def test_what_ended_in_a_turn_on_a_lost_node_is_reported_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = make([4, 5])
    assert taken(attempts, "c", FAR, 0) == 4
    attempts.end(FAR, 4, made=Outcome(4, "pid 7"))
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    begun = attempts.take("b", GPU_1, "pid 9", 1)
    assert begun
    assert (begun.shard_id, begun.done) == (4, True)


def test_a_process_that_did_not_get_the_answer_gets_the_same_shard_again() -> None:
    attempts = make([4, 5])
    assert [taken(attempts, "a", GPU_0, 0) for _ in range(2)] == [4, 4]
    attempts.inverted(GPU_0, 4)
    assert taken(attempts, "a", GPU_0, 0) == 5


def test_a_turn_is_kept_while_others_work_and_many_turns_are_left() -> None:
    attempts = make([4, 5])
    attempts.open_pass([4], 1, fixed_size=True, start_timeout_s=0, num_turns=9)
    first = attempts._next_turn - 9
    assert taken(attempts, "a", GPU_0, first) == 4
    assert taken(attempts, "b", GPU_1, first + 1) is None
    assert attempts.may_come(first + 1)
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    assert not attempts.may_come(first + 1)
    # Of a pass with a turn for each shard, so that Ray Data can release the worker.
    attempts.open_pass([4, 5], 1, fixed_size=True, start_timeout_s=0)
    assert taken(attempts, "a", GPU_0, first + 9) == 4
    assert not attempts.may_come(first + 10)


def test_a_turn_of_an_earlier_pass_gets_no_shard_and_does_not_wait() -> None:
    attempts = make([4, 5])
    assert taken(attempts, "a", GPU_0, 0) == 4
    assert list(attempts.open_pass([4, 5], 2, fixed_size=True, start_timeout_s=900, num_turns=3)) == [2, 3, 4]
    assert not attempts.enter("a", GPU_0, "pid 7", loaded=True, turn=1)
    assert taken(attempts, "a", GPU_0, 1) is None
    assert attempts.wait("a", 1)
    assert taken(attempts, "a", GPU_0, 2) == 4


def test_a_shard_that_was_made_is_not_made_again() -> None:
    attempts = make([4])
    attempts.begin("a", GPU_0, 4, "pid 7")
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    assert attempts.begin("a", GPU_0, 4, "pid 8").done


def test_attempts_are_counted_over_workers_and_passes() -> None:
    attempts = make([4, 5])
    assert attempts.begin("a", GPU_0, 4, "pid 7").attempt == 1
    # Process 7 died.
    assert attempts.begin("a", GPU_0, 4, "pid 8").attempt == 2
    attempts.fail("a", GPU_0, "CUDA error", 4)
    # A worker that cannot load the teacher has not tried its shard.
    attempts.fail("b", GPU_1, "no teacher", None)
    attempts.open_pass([4, 5], 2, fixed_size=True, start_timeout_s=0)
    assert [attempts.begin("b", GPU_1, shard_id, "pid 9").attempt for shard_id in (4, 5)] == [3, 1]
    attempts.end(GPU_1, 4, made=Outcome(4, "pid 7"))
    # Ray had not heard of it: the attempts are those that it took.
    assert attempts.begin("b", GPU_1, 4, "pid 9").attempt == 3


def test_the_attempt_of_an_earlier_run_is_counted_and_not_held_against_a_shard() -> None:
    attempts = HereOnly(2, begun_before=[4])
    attempts.open_pass([4, 5], 2, fixed_size=True, start_timeout_s=0)
    begun = [attempts.begin("a", GPU_0, 4, "pid 7") for _ in range(3)]
    assert [(answer.attempt, bool(answer.refusal)) for answer in begun] == [(2, False), (3, False), (3, True)]
    assert attempts.begin("a", GPU_0, 5, "pid 7").attempt == 1


def test_what_was_inverted_before_an_error_does_not_excuse_it() -> None:
    attempts = make([4, 5, 6])
    attempts.begin("a", GPU_0, 4, "pid 7")
    attempts.inverted(GPU_0, 4)
    attempts.fail("a", GPU_0, "CUDA error", 5)
    attempts.end(GPU_0, 4, made=Outcome(4, "pid 7"))
    attempts.fail("a", GPU_0, "CUDA error", 6)
    assert list(attempts.retired()) == [GPU_0]
