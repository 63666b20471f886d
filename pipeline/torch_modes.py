"""Shield computations from modes of PyTorch that the calling program has set for its own, as notebooks do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_KINDS = ("cpu", "cuda")


@contextmanager
def usual_modes() -> Iterator[None]:
    """Compute inside the context as in a fresh process: on the CPU where no device is named, in float32.

    Otherwise a default device would take tensors from where they are drawn, a default type of 16 bits would round the
    weights of a model as they are loaded, autocast would change the pixels of an inversion, and inference mode would
    leave it without gradients. The default type is PyTorch's for the whole process, so that other threads have it too
    meanwhile; the rest is of this thread alone.

    May decorate a function. Modes that are usual anyway are left alone: entering one slows down every operation.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, _KINDS):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
