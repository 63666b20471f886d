"""Loss terms: the weighted functions whose sum is minimized."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pipeline.checks import check_types
from pipeline.inversion import losses
from pipeline.inversion.config import InversionConfig
from pipeline.inversion.viewing import ViewOutput


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    Attributes:
        name: key of its values in `InversionResult.losses`.
        weight: factor of its values in the loss. A term that is maximized returns negative values.
        compute: function to minimize. A term that sees `pixels` gets the un-jittered images of the whole batch, float32
            [B, C, H, W] normalized, stopped patches included. Any other gets a `ViewOutput`: some images of the batch
            as this step shows them to the teacher. It returns a value per image, [B], or a scalar for the batch.
        sees: `pixels`; `view`, which holds the teacher's logits; or `blocks`, whose view also holds the attention
            output of each block of the teacher.
        network: what the term's own network reads, if it has one: only `kept` patches, or `whole` images.
        couples_images: whether the value of an image depends on the others, so that the batch cannot be split.
    """

    name: str
    weight: float
    compute: Callable[[Any], Tensor]
    sees: Literal["pixels", "view", "blocks"] = "pixels"
    network: Literal["kept", "whole"] | None = None
    couples_images: bool = False

    def __post_init__(self) -> None:
        check_types(self, f"term {self.name!r}: ")


def build_terms(
    config: InversionConfig,
    *,
    feature_prior: losses.FeaturePrior | None = None,
    disagreement: losses.Disagreement | None = None,
) -> list[Term]:
    """Return the terms that have a weight in a config, and always the class loss, so that its value is recorded.

    Args:
        config: weights and scope of the terms.
        feature_prior: distance to a CNN's statistics, if the config gives it a weight.
        disagreement: divergence from a student, if the config gives the adversarial term a weight.
    """
    published = config.scope == "published"
    networks = {"feature_prior": feature_prior, "adversarial": disagreement}
    for name, network in networks.items():
        assert bool(getattr(config, name)) == (network is not None), f"{name} needs a weight and a network, or neither"
    terms = [Term("class_loss", config.class_weight, _class_loss, sees="view")]
    if config.patch_similarity:
        terms.append(Term("patch_similarity", config.patch_similarity, _dissimilarity, sees="blocks"))
    if feature_prior is not None:
        terms.append(_prior_term(config.feature_prior, feature_prior, couples_images=published))
    if disagreement is not None:
        terms.append(_disagreement_term(config.adversarial, disagreement))
    for name, compute in losses.pixel_losses(published=published).items():
        if getattr(config, name):
            terms.append(Term(name, getattr(config, name), compute))
    return terms


def _class_loss(shown: ViewOutput) -> Tensor:
    return losses.class_loss(shown.logits, shown.targets)


def _dissimilarity(shown: ViewOutput) -> Tensor:
    return -losses.patch_similarity_entropy(shown.block_outputs)


def _prior_term(weight: float, prior: losses.FeaturePrior, *, couples_images: bool) -> Term:
    def compute(shown: ViewOutput) -> Tensor:
        return prior(shown.filled)

    return Term("feature_prior", weight, compute, sees="view", network="whole", couples_images=couples_images)


def _disagreement_term(weight: float, disagreement: losses.Disagreement) -> Term:
    def compute(shown: ViewOutput) -> Tensor:
        images = shown.jittered if disagreement.reads_kept else shown.filled
        with shown.precision():
            return -disagreement(shown.logits, images, shown.positions)

    network = "kept" if disagreement.reads_kept else "whole"
    return Term("adversarial", weight, compute, sees="view", network=network)
