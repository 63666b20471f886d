"""Deployable models as files. Each format is written, checked and opened in one module."""

import logging

from pipeline.artifacts.formats import load_quantized

__all__ = ["load_quantized"]

# torchao registers an Enum in a way that torch deprecates; users can do nothing about this warning.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "is an Enum subclass" not in str(record.msg))
