"""Reading image files: what no decoder may run, what none may wait for, and one message for every damaged file."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pisr_plugin.cli import prepare_data
from pisr_plugin.data.storage.image_files import image_size, list_images, read_rgb, write_png
from pisr_plugin.utils.errors import DataError

IMG = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def header(width, height):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))


def png(*chunks, size=(30, 20)):
    pixels = chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in IMG)))
    return b''.join((header(*size), *chunks, pixels, chunk(b'IEND', b'')))


@pytest.fixture
def no_ghostscript(monkeypatch):
    def run(*_, **__):
        raise AssertionError('Ghostscript was started')

    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', run)


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n'
TEXT_BOMB = png(chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(1 << 26))))
DAMAGED = {
    'PostScript': (POSTSCRIPT, 'not an image'),
    'text bomb': (TEXT_BOMB, 'too large'),
    'text bomb after the pixels': (png()[:-12] + TEXT_BOMB[33:], 'too large'),
    'absurd size': (png(size=(2**31 - 1,) * 2), 'exceeds limit'),
    'decompression bomb': (png(size=(60000, 60000)), 'exceeds limit'),
    'truncated': (png()[:700], 'truncated'),
    'empty': (b'', 'not an image'),
    'no image': (b'text', 'not an image'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_raise_one_message(name, tmp_path, no_ghostscript):
    content, reason = DAMAGED[name]
    path = tmp_path / 'photo.png'
    path.write_bytes(content)
    for source, place in ((path, str(path)), (content, '')):
        with pytest.raises(DataError) as raised:
            read_rgb(source)
        message = str(raised.value)
        assert message.startswith(place) and reason in message and '\n' not in message and len(message) < 300
        assert message.count(str(path)) == (1 if place else 0)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs FIFOs')
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'fifo.png')  # opening it would wait for a writer
    (tmp_path / 'folder.png').mkdir()
    for path in list_images(tmp_path):
        for read in (read_rgb, image_size):
            with pytest.raises(DataError, match='not a regular file'):
                read(path)


@pytest.mark.parametrize('suffix', ['jpg', 'tif', 'png'])
@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_the_size_is_that_of_the_decoded_image(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMG).save(tmp_path / f'photo.{suffix}', exif=exif)
    assert image_size(tmp_path / f'photo.{suffix}') == read_rgb(tmp_path / f'photo.{suffix}').shape[:2]


def test_a_photo_whose_name_is_not_utf8_is_used_or_named(tmp_path, capfd):
    folder = os.fsencode(tmp_path / 'photos')
    os.mkdir(folder)
    write_png(tmp_path / 'a.png', IMG)
    try:
        os.link(tmp_path / 'a.png', folder + b'/caf\xe9.png')
    except OSError:
        pytest.skip('a file system of Unicode names')
    argv = ['build', str(tmp_path / 'photos'), '-o', str(tmp_path / 'set'), '--scales', '2', '--workers', '1']
    assert prepare_data.main(argv) == 0
    assert [path.name for path in (tmp_path / 'set/HR').iterdir()] == ['caf_.png']
    assert prepare_data.main(['verify', str(tmp_path / 'set'), '--workers', '1']) == 0
    with open(folder + b'/torn\xe9.png', 'wb') as file:
        file.write(b'torn')
    capfd.readouterr()
    argv[3] = str(tmp_path / 'other')
    assert prepare_data.main(argv) == 2
    assert '1 of 2 photos cannot be used' in capfd.readouterr().err
