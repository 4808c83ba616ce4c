"""What ties a quality.json to the images it was measured on."""

from __future__ import annotations

from collections.abc import Sequence

from variegate.records import SyntheticImage, content_id


def images_key(images: Sequence[SyntheticImage]) -> str:
    """Hash of the kept images' ids: whether a quality.json is of the images that are kept now."""
    return content_id(sorted(image.id for image in images))
