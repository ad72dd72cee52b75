"""Image files as training data: found, measured without decoding, decoded strictly, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError
from ..files import write_whole

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap the sides
_FROM_CAMERA = ('JPEG', 'MPO', 'TIFF')  # formats asked for it: cameras write no others, and Pillow would decode a PNG

PNG_LEVEL = 3  # higher levels take several times as long for 1 % less

# Modes that become 8-bit RGB without loss of what training sees; 16-bit and float images would be clipped.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, by name; hidden files and sub-folders are left out.

    Raises:
        DataError: ``folder`` is missing, is no folder or holds no images.
    """
    if not folder.is_dir():
        raise DataError(f'{folder}: {"not a folder" if folder.exists() else "no such folder"}.')
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != '.']
    if not found:
        raise DataError(f'{folder}: no images. Possible endings: {", ".join(SUFFIXES)}')
    return found


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Height and width of the upright image as the header tells them; nothing is decoded.

    Args:
        source: An image file or its bytes.

    Raises:
        DataError: not an image; the message is without a place for bytes.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            turned = image.format in _FROM_CAMERA and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(source, error)) from None


def read_rgb(source: Path | bytes) -> np.ndarray:
    """Decodes a whole image; gray becomes three equal channels, transparency is dropped, a photo is turned upright.

    Pillow and not OpenCV: OpenCV fills up a truncated image and says nothing.

    Args:
        source: An image file or its bytes.

    Returns:
        Array of shape (H, W, 3), uint8, RGB.

    Raises:
        DataError: not an image, truncated, or with more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode not in _MODES:
                raise DataError(_unreadable(source, f'8 bits per channel expected, pixel mode {image.mode!r} found'))
            upright = ImageOps.exif_transpose(image) if image.format in _FROM_CAMERA else image
            return np.asarray(upright.convert('RGB'))
    # Pillow raises SyntaxError, ValueError, EOFError ... for damaged files of its various formats
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(_unreadable(source, error)) from None


def write_png(path: Path, img: np.ndarray) -> None:
    """Writes an image (H, W, 3), uint8, RGB; a process killed midway leaves no file under this name."""
    encoded = cv2.imencode('.png', img[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])[1]
    write_whole(path, encoded.tobytes())


def _unreadable(source: Path | bytes, why: object) -> str:
    if isinstance(why, OSError) and why.strerror:  # a file that cannot be opened; its own text repeats the path
        why = why.strerror
    if 'cannot identify image file' in str(why):
        why = 'not an image'
    return str(why) if isinstance(source, bytes) else f'{source}: {why}'
