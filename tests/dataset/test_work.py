"""Hours of actors and GPUs, and their price."""

import pytest

from pipeline.dataset.work import work_done


def test_an_hour_of_a_gpu_that_two_actors_share_is_two_hours_of_actors() -> None:
    seconds = {"NVIDIA L4": 7200.0, "cpu": 3600.0, None: 1800.0}
    done = work_done(seconds, gpus_per_actor=0.5, price_per_hour=0.4)
    assert done == {"actor_hours": 3.5, "gpu_hours": 1.0, "cost": pytest.approx(1.4)}
    assert work_done(seconds, gpus_per_actor=1.0, price_per_hour=None) == {"actor_hours": 3.5, "gpu_hours": 2.0}


def test_three_actors_fit_on_a_gpu_of_which_each_has_three_tenths() -> None:
    assert work_done({"NVIDIA L4": 10_800.0}, gpus_per_actor=0.3, price_per_hour=None)["gpu_hours"] == 1.0


def test_work_on_cpus_has_no_gpu_hours_and_a_price_of_zero_is_a_price() -> None:
    assert work_done({"cpu": 3600.0}, gpus_per_actor=0.5, price_per_hour=0.0) == {"actor_hours": 1.0, "cost": 0.0}
