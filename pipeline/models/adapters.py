"""Recognize the adapters of PEFT (LoRA and its like), which change a model's layers and are no model by themselves."""

import re
from collections.abc import Collection, Iterable

MERGE = "merge it first (model = model.merge_and_unload()), and save that model as any other"
CONFIG = "adapter_config.json"
# Parts of names in PEFT's state dicts, and in those of others' LoRA. A layer that PEFT wraps becomes its `base_layer`;
# modules of that name in timm's DLA hold several layers.
_OF_ADAPTERS = re.compile(
    r"\.base_layer\.(weight|bias)$|"
    r"(^|\.)(modules_to_save|original_module|lora_\w+|ada_lora_\w+|hada_\w+|lokr_\w+|"
    r"ia3_\w+|oft_[rR]|boft_[RS]|vera_lambda_\w+)(\.|$)"
)


def adapter_tensor(names: Iterable[str], model_keys: Collection[str]) -> str | None:
    """Return the first name of a tensor that belongs to an adapter or to a layer that one wraps; None if none does.

    Args:
        names: names of the tensors in a file.
        model_keys: names in the model's own state dict. A tensor whose name ends with one of them is the model's own,
            even if it looks like an adapter's.
    """
    suspects = (name for name in sorted(names) if _OF_ADAPTERS.search(name))
    own = tuple(f".{key}" for key in model_keys)
    return next((name for name in suspects if not f".{name}".endswith(own)), None)
