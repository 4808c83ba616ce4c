"""Models to draw with."""

from tiny_models import tiny_edit, tiny_edit_xl, tiny_inpaint, tiny_sd, tiny_sdxl  # noqa: F401 - fixtures
