from pipeline.distillation.midepoch import MidEpoch


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_checkpoint_is_due_so_long_after_the_last_one() -> None:
    clock = Clock()
    mid_epoch = MidEpoch(60, None, clock)
    clock.now = 59
    assert not mid_epoch.is_due()
    clock.now = 60
    assert mid_epoch.is_due()
    mid_epoch.saved()
    assert not mid_epoch.is_due()
    assert not mid_epoch.wants_to_ask()


def test_a_notice_makes_one_due_at_once_and_then_often() -> None:
    clock, notice = Clock(), [False]
    mid_epoch = MidEpoch(600, lambda: notice[0], clock)
    assert not mid_epoch.wants_to_ask()
    clock.now = 5
    assert mid_epoch.wants_to_ask()
    mid_epoch.ask()
    assert not mid_epoch.wants_to_ask()
    assert not mid_epoch.is_due()
    notice[0] = True
    mid_epoch.ask()
    assert mid_epoch.is_due()
    mid_epoch.saved()
    mid_epoch.ask()
    assert not mid_epoch.is_due()
    clock.now += 10
    assert mid_epoch.is_due()
