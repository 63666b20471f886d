"""Set and report the epsilon of LayerNorms, which timm takes from the architecture and cannot save."""

from torch import nn


def set_epsilon(what: str, model: nn.Module, epsilon: float, *, trained: bool) -> tuple[str, ...]:
    """Set the epsilon of a trained model's LayerNorms to the one that they were trained with.

    timm cannot write that number into a saved folder. So a model that is yet to be trained and saved keeps timm's, with
    a notice.

    Args:
        what: how the notice names the model.
        model: a timm model. If `trained`, its LayerNorms are changed in place.
        epsilon: the number that its LayerNorms added to the variance when its weights were trained.
        trained: whether the model is used as it is. If not, it will be trained and saved.
    """
    differing = [norm for norm in _norms(model) if norm.eps != epsilon]
    if differing and not trained:
        return (_notice(what, differing[0].eps, epsilon),)
    for norm in differing:
        norm.eps = epsilon
    return ()


def copy_notice(what: str, copy: nn.Module, original: nn.Module) -> tuple[str, ...]:
    """Report LayerNorms of a copy that add another number than those of the original; a copy may lack some blocks."""
    own, others = ({norm.eps for norm in _norms(model)} for model in (copy, original))
    return () if own == others else (_notice(what, max(own), max(others)),)


def _norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def _notice(what: str, own: float, epsilon: float) -> str:
    why = "a saved timm model cannot record another one"
    return f"{what}: its LayerNorms use timm's epsilon {own:g}, not transformers' {epsilon:g}, because {why}"
