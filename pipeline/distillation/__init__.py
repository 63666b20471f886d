"""Knowledge distillation: students, losses, and their training on Ray Train."""

from pipeline.distillation.config import DistillationConfig, StudentConfig
from pipeline.distillation.run import distill

__all__ = ["DistillationConfig", "StudentConfig", "distill"]
