"""Models to adapt."""

from tiny_models import tiny_sd, tiny_sdxl  # noqa: F401 - fixtures
