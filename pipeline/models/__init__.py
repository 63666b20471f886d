"""timm models for teachers and students, and how they read images."""

from pipeline.models.config import LOCAL_DIR, ModelConfig
from pipeline.models.image_size import model_input_size
from pipeline.models.loading import (
    LoadedModel,
    RealImageTransform,
    load_model,
)
from pipeline.models.saving import check_savable, save_model
from pipeline.models.weights import weight_digest

__all__ = [
    "LOCAL_DIR",
    "LoadedModel",
    "ModelConfig",
    "RealImageTransform",
    "check_savable",
    "load_model",
    "model_input_size",
    "save_model",
    "weight_digest",
]
