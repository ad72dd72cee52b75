"""Writes upscaled photos piece by piece, so that a result that is larger than the memory can be written.

The usual encoders want whole images. So they encode a few rows at a time here, and this module joins the pieces: those
of a JPEG by restart markers, those of a PNG into one compressed stream, those of a TIFF as its strips.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from pisr_plugin.data.storage.image_files import PNG_LEVEL
from pisr_plugin.data.storage.photo_files import EXIF_BLOCK, Format, Photo
from pisr_plugin.utils.errors import DataError, first_line
from pisr_plugin.utils.files import replacing

# Rows of a piece: eight rows of a JPEG's blocks, whose restart markers are numbered from 0 to 7.
_ROWS = 64
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_SOF, _SOS, _RST7, _EOI = (0xC0, 0xC1), 0xDA, b'\xff\xd7', b'\xff\xd9'  # markers in a JPEG
_CLASSIC_TIFF = 2**32 - 2**25  # bytes that a TIFF with offsets of 32 bits surely holds
_WIDTH, _HEIGHT = 0xA002, 0xA003  # tags in the EXIF block
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_TEXTS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
_SPACES = {'L': b'GRAY', 'RGB': b'RGB '}  # what a profile must be for

Encode = Callable[[np.ndarray, bool], bytes]  # encodes pixels (h, w, C), with metadata or without


def write_photo(
    path: Path, bands: Iterable[np.ndarray], photo: Photo, scale: int, file_format: Format, quality: int = 95
) -> None:
    """Writes an upscaled photo; an exception or a killed process leaves no file under this name.

    Memory holds a band at a time of a PNG, a JPEG and a TIFF, and the whole result of other formats.

    Args:
        path: File to write.
        bands: The result's pixels from top to bottom: arrays (h, W, C) of any height, uint8 or uint16.
        photo: The photo that has been upscaled. The result gets its metadata.
        scale: How many times as wide and high as ``photo`` the result is.
        file_format: Format of the file.
        quality: For lossy formats, 1 to 100.

    Raises:
        DataError: the format cannot hold the photo.
        OSError: the file cannot be written.
    """
    height, width = (side * scale for side in photo.size)
    block = photo.exif.get_ifd(EXIF_BLOCK)
    block.update({tag: side for tag, side in ((_WIDTH, width), (_HEIGHT, height)) if tag in block})
    mode = photo.mode if file_format.gray else photo.mode.replace('L', 'RGB')
    profile = photo.profile if photo.profile[16:20] == _SPACES[mode.removesuffix('A')] else b''

    def save(image: Image.Image, target: Any, has_metadata: bool = True) -> None:
        """Encodes an image by Pillow."""
        options: dict[str, Any] = {'quality': quality, 'subsampling': '4:4:4'} if file_format.lossy else {}
        if file_format.name == 'PNG':
            options['compress_level'] = 0  # its filters are wanted only
        if file_format.name == 'JPEG':
            options['restart_marker_rows'] = 1
        if file_format.name != 'BMP' and has_metadata:
            options['icc_profile'] = profile or None
            if len(photo.exif):
                options['exif'] = photo.exif
        try:
            image.save(target, format=file_format.name, **options)
        except OSError:
            raise
        except Exception as error:  # of several types, such as for a damaged profile
            raise DataError(f'{path}: cannot be written as {file_format.name} ({first_line(error)})') from None

    def encode(pixels: np.ndarray, has_metadata: bool) -> bytes:
        if pixels.dtype == np.uint16:
            return _encode_16_bits(pixels, photo.exif if has_metadata else None, profile if has_metadata else b'')
        save(_image(pixels), encoded := io.BytesIO(), has_metadata)
        return encoded.getvalue()

    with replacing(path, durable=False) as file:
        if file_format.name == 'PNG':
            _write_png(file, _pieces(bands), height, encode)
        elif file_format.name == 'JPEG':
            _write_jpeg(file, _pieces(bands), height, encode)
        elif file_format.name == 'TIFF':
            _write_tiff(file, _pieces(bands), photo, (height, width), profile)
        else:
            whole, top = Image.new(mode, (width, height)), 0
            for band in bands:
                whole.paste(_image(band).convert(mode), (0, top))
                top += len(band)
            save(whole, _Stream(file))


class _Stream:
    """A file without ``fileno``: Pillow then writes through Python, whose errors say what happened: a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush, self.seek, self.tell = file.write, file.flush, file.seek, file.tell


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _pieces(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts bands anew into pieces of :data:`_ROWS` rows; the last may have fewer."""
    parts: list[np.ndarray] = []
    for band in bands:
        for part in np.split(band, range(_ROWS - sum(map(len, parts)), len(band), _ROWS)):
            parts.append(part.copy())  # a view would keep the band
            if sum(map(len, parts)) == _ROWS:
                yield np.concatenate(parts)
                parts = []
        del band, part  # before the next band is computed
    if parts:
        yield np.concatenate(parts)


def _write_png(file: IO[bytes], pieces: Iterable[np.ndarray], height: int, encode: Encode) -> None:
    """Writes one PNG, whose compressed stream has the filtered rows of all pieces."""
    compressor = zlib.compressobj(PNG_LEVEL, strategy=zlib.Z_FILTERED)
    above: np.ndarray | None = None
    for piece in pieces:
        # filters refer to the row above
        encoded = encode(piece if above is None else np.concatenate((above, piece)), above is None)
        chunks = list(_chunks(encoded))
        rows = memoryview(zlib.decompress(b''.join(data for kind, data in chunks if kind == b'IDAT')))
        if above is None:
            file.write(_PNG_SIGNATURE)
            for kind, data in chunks:
                if kind == b'IHDR':
                    _write_chunk(file, kind, data[:4] + height.to_bytes(4, 'big') + data[8:])
                elif kind not in (b'IDAT', b'IEND'):
                    _write_chunk(file, kind, data)
        else:
            rows = rows[len(rows) // (1 + len(piece)) :]
        if compressed := compressor.compress(rows):
            _write_chunk(file, b'IDAT', compressed)
        above = piece[-1:].copy()
    _write_chunk(file, b'IDAT', compressor.flush())
    _write_chunk(file, b'IEND', b'')


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields type and data of a PNG's chunks."""
    place = len(_PNG_SIGNATURE)
    while place < len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], 'big')
        yield png[place + 4 : place + 8], png[place + 8 : end]
        place = end + 4  # behind the checksum


def _write_chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big'))


def _write_jpeg(file: IO[bytes], pieces: Iterable[np.ndarray], height: int, encode: Encode) -> None:
    """Writes one JPEG, in which a restart marker follows each row of blocks; a decoder begins anew there."""
    for number, piece in enumerate(pieces):
        encoded = bytearray(encode(piece, number == 0))
        marker, end = 0, 2
        while marker != _SOS:
            place, marker = end, encoded[end + 1]
            end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')
            if marker in _SOF:
                encoded[place + 5 : place + 7] = height.to_bytes(2, 'big')
        file.write(_RST7 + encoded[end:-2] if number else encoded[:-2])
    file.write(_EOI)


def _write_tiff(
    file: IO[bytes], pieces: Iterable[np.ndarray], photo: Photo, size: tuple[int, int], profile: bytes
) -> None:
    """Writes one TIFF, whose strips are the pieces."""
    exif, channels = photo.exif, len(photo.mode)
    texts = {tag: exif[tag] for tag in _TEXTS if tag in exif}
    resolution, unit = _resolution(exif)
    dtype = np.dtype(np.uint16 if photo.has_16_bits else np.uint8)
    tifffile.imwrite(
        file,
        (zlib.compress(piece.data) for piece in pieces),
        bigtiff=math.prod(size) * channels * dtype.itemsize > _CLASSIC_TIFF,
        shape=size if channels == 1 else (*size, channels),
        dtype=dtype,
        photometric='minisblack' if 'L' in photo.mode else 'rgb',
        planarconfig=None if channels == 1 else 'contig',
        extrasamples=['unassalpha'] if 'A' in photo.mode else None,
        rowsperstrip=_ROWS,
        compression='zlib',
        iccprofile=profile or None,
        resolution=resolution,
        resolutionunit=unit,
        software=False,
        metadata=None,
        extratags=[
            (tag, 2, 0, text if isinstance(text, bytes) else str(text).encode('latin-1', 'replace'), True)
            for tag, text in texts.items()
        ],
    )


def _resolution(exif: Image.Exif) -> tuple[tuple[float, float] | None, int | None]:
    """Returns the resolution and its unit; two times None if the tags are missing or damaged."""
    try:
        x, y = (float(exif.get(tag, 0)) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    except (TypeError, ValueError, ZeroDivisionError):
        return None, None
    unit = exif.get(_RESOLUTION_UNIT, 2)
    return ((x, y), unit) if 0 < x < math.inf and 0 < y < math.inf and unit in (1, 2, 3) else (None, None)


def _encode_16_bits(pixels: np.ndarray, exif: Image.Exif | None, profile: bytes) -> bytes:
    """Encodes pixels (h, w, C), uint16, as PNG."""
    if pixels.shape[2] > 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    known = {'IMAGE_METADATA_ICCP': profile, 'IMAGE_METADATA_EXIF': exif.tobytes() if exif else b''}
    blocks = {
        getattr(cv2, name): np.frombuffer(block, np.uint8)
        for name, block in known.items()
        if block and hasattr(cv2, name)
    }
    options = [cv2.IMWRITE_PNG_COMPRESSION, 0]
    if blocks:
        return cv2.imencodeWithMetadata('.png', pixels, list(blocks), list(blocks.values()), options)[1].tobytes()
    return cv2.imencode('.png', pixels, options)[1].tobytes()
