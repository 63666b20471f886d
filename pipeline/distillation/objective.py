"""The student and its loss as one module, so that `DistributedDataParallel` sees the whole forward pass."""

import torch
from torch import Tensor, nn

from pipeline.distillation.answers import Answers, read_kept
from pipeline.distillation.batches import DistillationBatch
from pipeline.distillation.config import DistillationConfig
from pipeline.distillation.descent import touch
from pipeline.distillation.losses import hard_label_loss, soft_label_loss, token_loss
from pipeline.distillation.students import Student

TERMS = ("kl", "tokens", "labels", "loss")
# Names of the sums over images: each loss term, the number of images with a label, and the number of all images.
SUMS = (*TERMS, "labeled", "images")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DistillationObjective(nn.Module):
    """Sum the loss terms of a student over a batch.

    Args:
        config: weights of the terms, temperature and dtype.
        student: the model to train.
        answers: the frozen teacher, as a function of a batch that returns its logits and, if asked for, its tokens.
    """

    def __init__(self, config: DistillationConfig, student: Student, answers: Answers) -> None:
        super().__init__()
        self.config, self.student, self.answers = config, student, answers
        self.dtype = DTYPES[config.dtype]

    def forward(self, batch: DistillationBatch | None) -> Tensor:
        """Return `SUMS` over the images, float32 [len(SUMS)].

        A worker that has run out of images passes None and gets zeros, with zero gradients.
        """
        nothing = touch(self.student.trained_parameters())
        if batch is None or not len(batch.pixels):
            return torch.zeros(len(SUMS), device=nothing.device) + nothing
        terms = self.losses(batch)
        sums = [terms[name].sum() if name in terms else nothing for name in TERMS]
        labeled = (batch.labels >= 0).sum() if "labels" in terms else nothing
        return torch.stack([*sums, labeled.to(nothing), nothing.new_tensor(len(batch.pixels))]) + nothing

    def losses(self, batch: DistillationBatch) -> dict[str, Tensor]:
        """Return each term [B], and their weighted sum as `loss`; `labels` is 0 where an image has no label."""
        config = self.config
        target, target_tokens = self.answers(batch)
        logits, tokens = self.read(batch)
        terms = {"kl": soft_label_loss(logits, target, config.temperature)}
        terms["loss"] = terms["kl"]
        if config.token_weight and tokens is not None and target_tokens is not None:
            num_tokens = batch.num_kept + self.answers.teacher.num_prefix_tokens
            terms["tokens"] = token_loss(tokens, target_tokens, num_tokens)
            terms["loss"] = terms["loss"] + config.token_weight * terms["tokens"]
        if config.label_weight:
            terms["labels"] = hard_label_loss(logits, batch.labels)
            terms["loss"] = terms["loss"] + config.label_weight * terms["labels"]
        return terms

    def read(self, batch: DistillationBatch, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the student's logits [B, classes], and its final tokens if it reads tokens.

        Args:
            batch: the batch to read.
            dtype: dtype of the forward pass; by default that of the training.
        """
        dtype = self.dtype if dtype is None else dtype
        with torch.autocast(batch.pixels.device.type, dtype, enabled=dtype != torch.float32):
            if self.student.vit is None:
                return self.student(batch.pixels).float(), None
            return read_kept(self.student.forward_tokens, batch, self.student.vit.num_patches)
