"""Recognize the adapters of PEFT (LoRA and its like), which change a model's layers and are no model by themselves."""

import re
from collections.abc import Iterable

MERGE = "merge it first (model = model.merge_and_unload()), and save that model as any other"
CONFIG = "adapter_config.json"
# Parts of names in PEFT's state dicts, and in those of others' LoRA, that no layer of timm's has.
_OF_ADAPTERS = re.compile(
    r"(^|\.)(base_layer|modules_to_save|original_module|lora_\w+|ada_lora_\w+|hada_\w+|lokr_\w+|"
    r"ia3_\w+|oft_[rR]|boft_[RS]|vera_lambda_\w+|prompt_encoder)(\.|$)"
)


def adapter_tensor(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor that is an adapter's, or of a layer under one; None if there is none."""
    return next((name for name in sorted(names) if _OF_ADAPTERS.search(name)), None)
