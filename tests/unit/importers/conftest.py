"""Models to check the fit with."""

from tiny_models import tiny_sdxl  # noqa: F401 - fixture
