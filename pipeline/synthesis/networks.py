"""Load the networks of a synthesis: the teacher, and those of loss terms."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from pipeline.artifacts.facts import check_class_order
from pipeline.errors import ModelError
from pipeline.inversion import (
    AnyTeacher,
    Disagreement,
    FeaturePrior,
    InversionConfig,
    Term,
    build_terms,
    make_teacher,
)
from pipeline.models import LoadedModel, ModelConfig, load_model
from pipeline.models.image_reader import ImageReader
from pipeline.models.renormalize import Renormalize
from pipeline.synthesis.config import SynthesisConfig
from pipeline.vetting import check_teacher


@dataclass(frozen=True)
class Networks:
    """Networks of a synthesis, as loaded, on the CPU.

    Attributes:
        teacher: the model to invert.
        feature_model: the CNN of the feature prior; None without one.
        student: the student of the adversarial term; None without one.
    """

    teacher: LoadedModel
    feature_model: LoadedModel | None = None
    student: LoadedModel | None = None

    def make_teacher(self, inversion: InversionConfig) -> AnyTeacher:
        """Return the teacher as an inversion reads it.

        Raises:
            ModelError: see `pipeline.inversion.make_teacher`.
        """
        loaded = self.teacher
        return make_teacher(loaded.model, inversion, image_size=loaded.input_size[1:], mean=loaded.mean, std=loaded.std)

    def make_terms(self, inversion: InversionConfig, device: torch.device) -> list[Term]:
        """Build the loss terms of an inversion, with these networks on a device."""
        prior = disagreement = None
        if self.feature_model is not None:
            prior = FeaturePrior(self.feature_network.to(device), batch_statistics=inversion.scope == "published")
        if self.student_reader is not None:
            student = self.student_reader.to(device)
            disagreement = Disagreement(student, reads_kept=student.vit is not None)
        return build_terms(inversion, feature_prior=prior, disagreement=disagreement)

    @property
    def feature_model_renormalizes(self) -> bool:
        """Whether the feature model is normalized otherwise than the teacher."""
        other = self.feature_model
        return other is not None and (other.mean, other.std) != (self.teacher.mean, self.teacher.std)

    @property
    def feature_network(self) -> nn.Module:
        """The feature model as it reads the teacher's images; only where there is one."""
        other, teacher = self.feature_model, self.teacher
        assert other is not None
        renormalize = Renormalize(mean=teacher.mean, std=teacher.std, to_mean=other.mean, to_std=other.std)
        return nn.Sequential(renormalize, other.model)

    def notices(self) -> list[str]:
        """Return messages for the user about how the networks were loaded."""
        networks = (self.teacher, self.feature_model, self.student)
        return [notice for loaded in networks if loaded is not None for notice in loaded.notices]

    @cached_property
    def student_reader(self) -> ImageReader | None:
        """The student as it reads the teacher's images, made and tried out when first asked for.

        Raises:
            ModelError: the student does not take the teacher's images, or has other classes.
        """
        if self.student is None:
            return None
        reader = ImageReader(self.student.model, self.teacher, mean=self.student.mean, std=self.student.std)
        reader.try_out(self.teacher)
        return reader


def load_networks(config: SynthesisConfig, teacher: LoadedModel | None = None) -> Networks:
    """Load the networks, and check that they go together and that a dataset can be made of the teacher.

    Args:
        config: settings of the synthesis.
        teacher: the config's teacher, if the caller has loaded it and printed its notices. It is copied, because an
            inversion freezes its teacher.

    Raises:
        ConfigError, ModelError, CheckpointError: one cannot be loaded, or does not fit the teacher.
    """
    if teacher is None:
        teacher = load_model(config.teacher)
    else:
        teacher = replace(teacher, model=copy.deepcopy(teacher.model), notices=())
    check_teacher(teacher, stored=True)
    networks = Networks(
        teacher=teacher,
        feature_model=_load_beside(config.feature_model, teacher, "feature model"),
        student=_load_beside(config.student, teacher, "student"),
    )
    if networks.student is not None:
        check_class_order(networks.student, teacher)
    if networks.feature_model is not None:
        try:
            FeaturePrior(networks.feature_model.model)
        except ValueError as error:
            raise ModelError(f"feature model {networks.feature_model.name!r}: {error}") from error
    _ = networks.student_reader
    return networks


def _load_beside(config: ModelConfig | None, teacher: LoadedModel, role: str) -> LoadedModel | None:
    if config is None:
        return None
    loaded = load_model(config)
    if loaded.input_size[0] != teacher.input_size[0]:
        raise ModelError(
            f"{role} {loaded.name!r} reads {loaded.input_size[0]} channels, the teacher {teacher.input_size[0]}"
        )
    return loaded
