"""Outputs of runs: what identifies a run, whose output a folder is, and that only one run works on it."""

from pipeline.outputs.claims import Claim, check_same_settings, claim, find_config, hold
from pipeline.outputs.identity import differences, identifying_settings, make_document, without_locations

__all__ = [
    "Claim",
    "check_same_settings",
    "claim",
    "differences",
    "find_config",
    "hold",
    "identifying_settings",
    "make_document",
    "without_locations",
]
