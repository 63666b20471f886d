"""Model inversion on tensors, without Ray and without files."""

from pipeline.inversion.config import AdaptiveEnd, InversionConfig, StopFormula, ViewConfig
from pipeline.inversion.engine import Inversion
from pipeline.inversion.frozen import frozen_copy
from pipeline.inversion.inverting import invert
from pipeline.inversion.losses import Disagreement, FeaturePrior
from pipeline.inversion.result import Harvest, InversionResult
from pipeline.inversion.scoring import score
from pipeline.inversion.starts import start_images
from pipeline.inversion.teacher import AnyTeacher, MaskedTeacher, Teacher, make_teacher
from pipeline.inversion.terms import Term, build_terms
from pipeline.inversion.viewing import ViewOutput

__all__ = [
    "AdaptiveEnd",
    "AnyTeacher",
    "Disagreement",
    "FeaturePrior",
    "Harvest",
    "Inversion",
    "InversionConfig",
    "InversionResult",
    "MaskedTeacher",
    "StopFormula",
    "Teacher",
    "Term",
    "ViewConfig",
    "ViewOutput",
    "build_terms",
    "frozen_copy",
    "invert",
    "make_teacher",
    "score",
    "start_images",
]
