"""Random damage to every file that the data rooms read: one message that names the file, or a correct result.

``PISR_FUZZ=10`` tries ten times as many examples.
"""

import io
import json
import os
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pisr_plugin.data.prepare.layout import RECORD, piece_keys, read_record
from pisr_plugin.data.storage.image_files import image_size, read_rgb, write_png
from pisr_plugin.data.storage.png_lmdb import read_meta_info, write_lmdb
from pisr_plugin.data.storage.raw_lmdb import RawLmdb, write_raw_lmdb
from pisr_plugin.utils.errors import DataError

SIZES = [(9, 12), (7, 5), (16, 16)]
IMAGES = {str(n): np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8) for n, size in enumerate(SIZES)}
RECORD_TEXT = json.dumps(
    {
        'options': {'scales': [2, 3], 'crop': 'lcm', 'sub_images': 48, 'step': 24, 'thresh': 0, 'lr_dirs': [2]},
        'bicubic': [2, 3],
        'pieces': {'a': 3, 'b': 0},
        'done': ['images', 'raw'],
        'sources': {'a.png': 100, 'b.jpg': 7},
    }
)


def fuzz(examples):
    """Settings for a test of so many examples, times ``PISR_FUZZ``."""
    count = examples * int(os.environ.get('PISR_FUZZ', 1))
    unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=unchecked, database=None, derandomize=True)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    """Undamaged stores of the images."""
    root = tmp_path_factory.mktemp('stores')
    for key, img in IMAGES.items():
        write_png(root / f'{key}.png', img)
    paths = sorted(root.glob('*.png'))
    write_lmdb(paths, root / 'png.lmdb')
    write_raw_lmdb(paths, root / 'raw.lmdb')
    return root


@st.composite
def damaged(draw, content):
    """The content with a few edits: bytes or digits changed, parts cut, repeated, moved or inserted."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 40))
        kind = draw(st.sampled_from(['flip', 'digit', 'cut', 'repeat', 'insert', 'truncate']))
        if kind == 'flip' and data:
            data[start] ^= draw(st.integers(1, 255))
        elif kind == 'digit':
            digits = [place for place, byte in enumerate(data) if chr(byte) in string.digits]
            if digits:
                data[draw(st.sampled_from(digits))] = ord(draw(st.sampled_from(string.digits)))
        elif kind == 'cut':
            del data[start : start + length]
        elif kind == 'repeat':
            data[start:start] = data[start : start + length] * draw(st.sampled_from([1, 2, 2000]))
        elif kind == 'insert':
            data[start:start] = draw(st.binary(max_size=40))
        elif kind == 'truncate':
            del data[start:]
    return bytes(data)


def write_copy(source, folder, name, content):
    """A store whose list is replaced."""
    folder.mkdir(exist_ok=True)
    if not (folder / 'data.mdb').exists():
        (folder / 'data.mdb').write_bytes((source / 'data.mdb').read_bytes())
    (folder / name).write_bytes(content)
    return folder


def check_message(error, path):
    message = str(error)
    assert str(path) in message and '\n' not in message and len(message) < 1000


@fuzz(400)
@given(data=st.data())
def test_a_damaged_list_of_a_raw_lmdb_is_refused(stores, tmp_path, data):
    content = (stores / 'raw.lmdb/images.txt').read_bytes()
    changed = data.draw(damaged(content))
    folder = write_copy(stores / 'raw.lmdb', tmp_path / 'raw.lmdb', 'images.txt', changed)
    try:
        store = RawLmdb(folder)
    except DataError as error:
        assert changed != content
        check_message(error, folder)
    else:
        assert changed.rstrip(b'\n') == content.rstrip(b'\n')
        assert all(np.array_equal(store.views([i])[0], IMAGES[key]) for i, key in enumerate(store.keys))


@fuzz(200)
@given(data=st.data())
def test_a_damaged_raw_lmdb_is_refused_or_known_as_changed(stores, tmp_path, data):
    content = (stores / 'raw.lmdb/data.mdb').read_bytes()
    folder = write_copy(stores / 'raw.lmdb', tmp_path / 'raw.lmdb', 'images.txt', b'')
    (folder / 'images.txt').write_bytes((stores / 'raw.lmdb/images.txt').read_bytes())
    (folder / 'data.mdb').write_bytes(data.draw(damaged(content)))
    try:
        store = RawLmdb(folder)
    except DataError as error:
        check_message(error, folder)
        return
    for index, key in enumerate(store.keys):
        assert np.array_equal(store.views([index])[0], IMAGES[key]) != store.is_changed(index)


@fuzz(400)
@given(data=st.data())
def test_a_damaged_meta_info_is_refused_or_read_as_it_says(stores, tmp_path, data):
    changed = data.draw(damaged((stores / 'png.lmdb/meta_info.txt').read_bytes()))
    folder = write_copy(stores / 'png.lmdb', tmp_path / 'png.lmdb', 'meta_info.txt', changed)
    try:
        found = read_meta_info(folder)
    except DataError as error:
        check_message(error, folder / 'meta_info.txt')
    else:
        lines = changed.decode().splitlines()
        assert [line.partition('.')[0] for line in lines] == list(found)
        assert all(min(size) > 0 for size in found.values())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@st.composite
def records(draw):
    """``prepare.json`` with bytes damaged, or with one value replaced by another of any type."""
    if draw(st.booleans()):
        return draw(damaged(RECORD_TEXT.encode()))
    record = json.loads(RECORD_TEXT)
    block = draw(st.sampled_from([record, record['options'], record['pieces'], record['sources']]))
    block[draw(st.sampled_from([*block, '../x']))] = draw(JSON_VALUES | st.just(10**18))
    return json.dumps(record).encode()


@fuzz(600)
@given(content=records())
def test_a_damaged_record_is_refused_or_usable(tmp_path, content):
    (tmp_path / RECORD).write_bytes(content)
    try:
        record = read_record(tmp_path)
    except DataError as error:
        check_message(error, tmp_path)
        return
    keys = piece_keys(record)
    assert len(keys) == sum(max(count, 1) for count in record['pieces'].values())
    assert all('/' not in key and '.' not in key for key in keys)
    assert all(2 <= scale <= 64 for scale in record['options']['scales'] + record['bicubic'])
    assert set(record['done']) <= {'images', 'lmdb', 'raw'}


@pytest.mark.parametrize(
    'text',
    ['[' * 100000, '1' * 5000, 'NaN', '"\\ud800"', '{"options": ' * 3000, '\ufeff{}', '[]', '5', 'null', ''],
    ids=['deep', 'digits', 'nan', 'surrogate', 'deep keys', 'bom', 'list', 'number', 'null', 'empty'],
)
def test_hostile_json_is_refused(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(DataError) as raised:
        read_record(tmp_path)
    check_message(raised.value, tmp_path)


def encoded(name):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES['0']).save(buffer, name)
    return buffer.getvalue()


ENCODED = [encoded(name) for name in ('PNG', 'JPEG', 'BMP', 'TIFF', 'GIF', 'PPM')]


@fuzz(600)
@given(data=st.data())
def test_damaged_images_are_refused_or_decoded(tmp_path, data):
    path = tmp_path / 'photo.png'
    path.write_bytes(data.draw(damaged(data.draw(st.sampled_from(ENCODED)))))
    for read in (image_size, read_rgb):
        try:
            found = read(path)
        except DataError as error:
            check_message(error, path)
        else:
            assert read is image_size or (found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3)
