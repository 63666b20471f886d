"""Packages whose exports are imported when they are asked for."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("package", ["pipeline.dataset", "pipeline.quantization", "pipeline.synthesis"])
def test_a_package_has_what_it_exports_and_nothing_else(package: str) -> None:
    module = import_module(package)
    assert [getattr(module, name).__name__ for name in module.__all__] == module.__all__
    with pytest.raises(AttributeError, match=f"^module '{package}' has no attribute 'nothing'$"):
        _ = module.nothing
