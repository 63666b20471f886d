"""Deployable models as files. Each format is written, checked and opened in one module."""

from pipeline.artifacts.formats import load_quantized

__all__ = ["load_quantized"]
