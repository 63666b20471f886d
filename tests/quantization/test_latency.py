"""Latency is measured where memory suffices, and a batch that is too large ends no calibration."""

import pytest
import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.quantization.artifact_files import Artifact
from pipeline.quantization.latency import measure_latencies

# No machine has as much memory as so many images take.
TOO_MANY = 2**31 - 1


def test_a_batch_that_does_not_fit_into_memory_is_not_measured_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact("pt2", 0, lambda images: images, uri="memory://out/w8a8.pt2")
    found = measure_latencies(artifact, (3, 224, 224), [1, TOO_MANY, 2])
    assert found.keys() == {"latency_ms", "latency_ms_batch_2"}
    told = f"w8a8.pt2: latency at batch {TOO_MANY} is not measured: latency_batch_size is {TOO_MANY}, and memory"
    assert told in capsys.readouterr().err


OUT_OF_MEMORY = [torch.OutOfMemoryError("full"), CheckpointError("cannot be run"), MemoryError(), RuntimeError("a\nb")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_so_is_one_that_an_artifact_cannot_read(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def predict(images: Tensor) -> Tensor:
        if len(images) > 4:
            raise error
        return images

    assert measure_latencies(Artifact("onnx", 0, predict), (1, 8, 8), [4, 5]).keys() == {"latency_ms"}
    assert "fp32 as onnx: latency at batch 5 is not measured: " in capsys.readouterr().err
