import math

import pytest
import torch

from pipeline.distillation.losses import hard_label_loss, soft_label_loss, token_loss


def test_soft_label_loss_by_hand() -> None:
    # Softened by T = 2: teacher (0.8, 0.2), student (0.5, 0.5).
    teacher = torch.tensor([[2 * math.log(4), 0.0]])
    student = torch.tensor([[3.0, 3.0]])
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert soft_label_loss(student, teacher, 2.0).tolist() == pytest.approx([4 * kl], rel=1e-5)


def test_soft_label_loss_is_zero_for_the_same_answer_and_counts_each_image() -> None:
    logits = torch.randn(3, 5)
    other = logits.clone()
    other[1] = torch.randn(5)
    loss = soft_label_loss(logits, other, 4.0)
    assert loss.shape == (3,)
    assert loss[[0, 2]].abs().max() < 1e-5
    assert loss[1] > 0


def test_the_gradient_of_soft_labels_keeps_its_size_while_the_temperature_changes() -> None:
    teacher = torch.tensor([[0.3, -0.1, -0.2]])
    sizes = []
    for temperature in (20.0, 200.0):
        student = torch.zeros(1, 3, requires_grad=True)
        soft_label_loss(student, teacher, temperature).sum().backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_token_loss_leaves_out_what_an_image_does_not_have() -> None:
    student = torch.zeros(2, 3, 2)
    teacher = torch.zeros(2, 3, 2)
    student[0] = 2.0
    student[1, 0] = 3.0  # the only token of the second image
    assert token_loss(student, teacher, torch.tensor([3, 1])).tolist() == [4.0, 9.0]


def test_hard_label_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    expected = [math.log(4 / 3), math.log(2)]
    assert hard_label_loss(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected)
