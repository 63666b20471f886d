from pipeline.workers.checkpoint_timer import CheckpointTimer


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_checkpoint_is_due_so_long_after_the_last_one() -> None:
    clock = Clock()
    when = CheckpointTimer(60, None, clock)
    clock.now = 59
    assert not when.is_due()
    clock.now = 60
    assert when.is_due()
    when.saved()
    assert not when.is_due()
    assert not when.wants_to_ask()


def test_a_notice_makes_one_due_at_once_and_then_often() -> None:
    clock, notice = Clock(), [False]
    when = CheckpointTimer(600, lambda: notice[0], clock)
    assert not when.wants_to_ask()
    clock.now = 5
    assert when.wants_to_ask()
    when.ask()
    assert not when.wants_to_ask()
    assert not when.is_due()
    notice[0] = True
    when.ask()
    assert when.is_due()
    when.saved()
    when.ask()
    assert not when.is_due()
    clock.now += 10
    assert when.is_due()
