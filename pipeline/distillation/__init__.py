"""Knowledge distillation: students, losses, and their training on Ray Train."""

from pipeline.distillation.augment_config import AugmentConfig
from pipeline.distillation.config import DistillationConfig, StudentConfig, WeightedImages
from pipeline.distillation.run import distill, epochs_left

__all__ = ["AugmentConfig", "DistillationConfig", "StudentConfig", "WeightedImages", "distill", "epochs_left"]
