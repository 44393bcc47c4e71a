"""Images as videos of one frame: decoded by Pillow, as torchvision's image folders and with them MAE do.

Pixels come as they are stored: a camera's rotation mark (EXIF) is not applied, and a palette, grey levels, CMYK or
transparency are converted to RGB. Of an animation the first picture counts.
"""

from __future__ import annotations

import io
import re
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mvd_offline.errors import VideoError
from mvd_offline.video.files import read_bytes

PILLOW = f"pillow {metadata.version('pillow')}"
"""The decoder's name in errors and ledgers."""

MAX_PIXELS = 89_478_485
"""Larger images are not decoded: Pillow's own limit for what may be a decompression bomb."""

# A file may hold another of these formats than its name says (ImageNet has such), but none that runs programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")

# Pillow would cut these to their lowest 8 bits.
_DEEP_MODES = ("I", "F")


def decode_image(path: Path) -> NDArray[np.uint8]:
    """An image's pixels, uint8 (H, W, 3) RGB.

    Raises:
        VideoError: missing, no image, cut off, larger than `MAX_PIXELS`, or of more than 8 bits a channel.
    """
    content = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check(image, path)
                return np.asarray(image.convert("RGB"))
    except VideoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VideoError(str(path), f"more than {MAX_PIXELS:,} pixels: not decoded", decoder=PILLOW) from None
    except UnidentifiedImageError:
        reason = f"not an image: its content is none of {', '.join(_FORMATS)}"
        raise VideoError(str(path), reason, decoder=PILLOW) from None
    except Exception as error:
        # Pillow's decoders raise many things on broken files.
        reason = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", str(error)).strip() or type(error).__name__
        raise VideoError(str(path), reason.splitlines()[0], decoder=PILLOW) from None


def _check(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        reason = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: not decoded"
        raise VideoError(str(path), reason, decoder=PILLOW)
    if image.mode.split(";")[0] in _DEEP_MODES or _is_deep(image):
        reason = f"pixels of more than 8 bits (Pillow's mode {image.mode}); convert the image to 8 bits"
        raise VideoError(str(path), reason, decoder=PILLOW)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel where Pillow's mode, such as RGB, has 8."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
