from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.distillation.answers import Answers, as_reader, read_kept
from pipeline.distillation.batches import Images, to_batch
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.vit.subset import SubsetViT
from tests.distillation.conftest import kept_patches, make_images

CPU = torch.device("cpu")


def test_images_are_read_at_their_own_patches(teacher: LoadedModel) -> None:
    images, vit = make_images(9), SubsetViT(teacher.model)
    logits, tokens = read_kept(vit.forward_tokens, to_batch(images, CPU), vit.num_patches)
    assert tokens.shape == (9, 17, 32)
    for row in range(9):
        keep = torch.tensor([kept_patches(row)])
        alone, own = vit.forward_tokens(torch.from_numpy(images.pixels[row : row + 1]), keep)
        torch.testing.assert_close(logits[row], alone[0])
        torch.testing.assert_close(tokens[row, : own.shape[1]], own[0])
        assert not tokens[row, own.shape[1] :].any()


@pytest.mark.parametrize("with_tokens", [False, True])
def test_kept_answers_are_those_of_the_teacher(teacher: LoadedModel, with_tokens: bool) -> None:
    images = make_images(9)
    answers = Answers(SubsetViT(teacher.model), with_tokens=with_tokens, dtype=torch.float32)
    rows = torch.tensor([7, 1, 2])  # 4 and 7 patches: fewer than the most
    batch = to_batch(images.take(rows.numpy()), CPU, rows.numpy())
    fresh = answers(batch)
    answers.keep(images, CPU, batch_size=4, rank=0, world_size=1)
    teacher.model.head.weight.data.zero_()  # type: ignore[union-attr]
    kept = answers(batch)
    torch.testing.assert_close(kept[0], fresh[0])
    assert (kept[1] is not None) == with_tokens
    if kept[1] is not None and fresh[1] is not None:
        torch.testing.assert_close(kept[1], fresh[1])


def test_bfloat16_answers_come_as_float32(teacher: LoadedModel) -> None:
    batch = to_batch(make_images(4), CPU)
    exact, _ = Answers(SubsetViT(teacher.model), with_tokens=False, dtype=torch.float32)(batch)
    rounded, _ = Answers(SubsetViT(teacher.model), with_tokens=False, dtype=torch.bfloat16)(batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_teacher_that_reads_whole_images_answers_the_filled_ones(whole_folder: Path) -> None:
    """However many patches they keep."""
    loaded = load_model(ModelConfig(name=f"local-dir:{whole_folder}"))
    images = Images(
        np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32),
        np.arange(3),
        np.array([[0, 1], [5, 0], [7, 9]]),
        np.array([2, 1, 2]),
        ["a", "b", "c"],
    )
    answers = Answers(as_reader(loaded.model), with_tokens=False, dtype=torch.float32)
    logits, tokens = answers(to_batch(images, CPU))
    assert tokens is None
    torch.testing.assert_close(logits, loaded.model(torch.from_numpy(images.pixels)))
    rows = np.array([2, 0])
    answers.keep(images, CPU, batch_size=2, rank=0, world_size=1)
    torch.testing.assert_close(answers(to_batch(images.take(rows), CPU, rows))[0], logits[rows])
