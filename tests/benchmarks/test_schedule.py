"""The schedule's benchmark: extrapolation, and a run with a tiny model that prints one line."""

import json

import pytest
import torch

from benchmarks.schedule import main, schedule_seconds


def test_whole_runs_from_steps_of_each_phase() -> None:
    phases = [(50, 196), (50, 137), (3900, 46)]
    found = schedule_seconds(phases, {"ours": [4.0, 2.0, 1.0], "plain": [8.0, 6.0, 2.0]})
    assert found == {"ours_sparse": 4200, "ours_dense": 16000, "plain_sparse": 8500, "plain_dense": 32000}


def test_one_line_of_figures(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--model", "test_vit", "--batch", "1", "--steps", "1", "--rounds", "1", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    line = json.loads(capsys.readouterr().out)
    assert line["phases"] == [[50, 100], [50, 70], [100, 49], [100, 34], [3700, 23]]
    assert set(line["schedule_s"]) == {"ours_sparse", "ours_dense", "plain_sparse", "plain_dense"}
    image = line["an_image"]
    assert set(image["seconds"]) == set(image["work"]) == {"dense", "sparse", "rebirth"}
    assert image["work"]["rebirth"] < image["work"]["sparse"] < image["work"]["dense"] == 1
    memory = line["memory"]
    assert memory["predicted_ours"] == pytest.approx(memory["peak_bytes"]["ours"], rel=0.15)
    assert memory["peak_bytes"]["ours"] < memory["peak_bytes"]["plain"]
