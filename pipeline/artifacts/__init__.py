"""Deployable models as files. Each format is written, checked and opened in one module."""
