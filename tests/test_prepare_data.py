"""prepare_data on real files: what it makes, how it goes on after a kill, and what it says to every mistake."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

from pisr_plugin.cli import prepare_data
from pisr_plugin.data.prepare import build as build_module
from pisr_plugin.data.storage import lmdb_writer
from pisr_plugin.data.storage.image_files import image_size, read_rgb
from pisr_plugin.data.storage.png_lmdb import read_meta_info
from pisr_plugin.data.storage.raw_lmdb import RawLmdb
from pisr_plugin.utils.resize import imresize_uint8
from tests.processes import outputs, start

ROOT = Path(__file__).parents[1]


def photo(height, width, seed):
    """A smooth picture with edges, (height, width, 3) uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def photos(folder, sizes):
    """Saves photos 001.png, 002.png, ... of the given sizes."""
    folder.mkdir(exist_ok=True)
    for number, (height, width) in enumerate(sizes, 1):
        Image.fromarray(photo(height, width, number)).save(folder / f'{number:03d}.png')
    return folder


def run(*argv):
    return prepare_data.main([str(arg) for arg in argv])


def build(source, out, *argv):
    return run('build', source, '-o', out, '--workers', 1, *argv)


def content(root):
    """All images of a data set, decoded: by path, and by LMDB and key."""
    found = {str(path.relative_to(root)): read_rgb(path).tobytes() for path in sorted(root.rglob('*.png'))}
    for path in sorted(root.glob('*.lmdb')):
        found.update({(path.name, key): value for key, value in records(path).items()})
        (listed,) = path.glob('*.txt')
        found[path.name, 'list'] = listed.read_bytes()
    return found


def records(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return {bytes(key).decode(): bytes(value) for key, value in txn.cursor()}


def message(capsys):
    """The one error that was printed."""
    told = capsys.readouterr().err
    assert 'Traceback' not in told
    start = told.index('error: ')
    assert told.count('error: ') == 1
    return told[start:]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return photos(tmp_path_factory.mktemp('photos'), [(49, 61), (60, 48), (37, 90)])


# What it makes


def test_makes_pairs_of_exact_scale(source, tmp_path, capsys):
    assert build(source, tmp_path / 'set') == 0
    for name, size in {'001': (48, 60), '002': (60, 48), '003': (36, 84)}.items():
        hr = read_rgb(tmp_path / f'set/HR/{name}.png')
        assert np.array_equal(hr, read_rgb(source / f'{name}.png')[: size[0], : size[1]])
        for scale in (2, 3, 4):
            lr = read_rgb(tmp_path / f'set/LR_bicubic/X{scale}/{name}.png')
            assert np.array_equal(lr, imresize_uint8(hr, 1 / scale))
    assert '3 pairs' in capsys.readouterr().out
    assert run('verify', tmp_path / 'set') == 0


def test_crop_to_each_scale_keeps_hr_whole(source, tmp_path):
    assert build(source, tmp_path / 'set', '--crop', 'scale', '--no-lmdb') == 0
    whole = read_rgb(source / '001.png')
    assert np.array_equal(read_rgb(tmp_path / 'set/HR/001.png'), whole)
    for scale in (2, 3, 4):
        crop = whole[: 49 // scale * scale, : 61 // scale * scale]
        assert np.array_equal(read_rgb(tmp_path / f'set/LR_bicubic/X{scale}/001.png'), imresize_uint8(crop, 1 / scale))
    assert not list((tmp_path / 'set').glob('*.lmdb'))
    assert run('verify', tmp_path / 'set') == 0


def test_sub_images_are_cut_alike_from_hr_and_lr(source, tmp_path):
    assert build(source, tmp_path / 'whole', '--no-lmdb') == 0
    assert build(source, tmp_path / 'set', '--sub-images', 24, '--step', 12, '--no-lmdb') == 0
    hr = read_rgb(tmp_path / 'whole/HR/003.png')  # 36 x 84: rows 0, 12; columns 0, 12, ..., 60
    corners = [(top, left) for top in (0, 12) for left in range(0, 61, 12)]
    assert len(list((tmp_path / 'set/HR').glob('003_s*.png'))) == len(corners)
    for number, (top, left) in enumerate(corners, 1):
        piece = read_rgb(tmp_path / f'set/HR/003_s{number:03d}.png')
        assert np.array_equal(piece, hr[top : top + 24, left : left + 24])
        for scale in (2, 3, 4):
            lr = read_rgb(tmp_path / f'whole/LR_bicubic/X{scale}/003.png')
            piece = read_rgb(tmp_path / f'set/LR_bicubic/X{scale}/003_s{number:03d}.png')
            y, x, side = top // scale, left // scale, 24 // scale
            assert np.array_equal(piece, lr[y : y + side, x : x + side])


def test_last_sub_image_is_flush_with_the_end_unless_the_rest_is_small(tmp_path):
    photos(tmp_path / 'in', [(24, 72)])
    assert build(tmp_path / 'in', tmp_path / 'a', '--sub-images', 24, '--step', 36, '--no-lmdb') == 0
    assert build(tmp_path / 'in', tmp_path / 'b', '--sub-images', 24, '--step', 36, '--thresh', 12, '--no-lmdb') == 0
    assert len(list((tmp_path / 'a/HR').iterdir())) == 3  # columns 0, 36, 48
    assert len(list((tmp_path / 'b/HR').iterdir())) == 2


def test_takes_photos_as_they_come(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    colour = Image.fromarray(photo(48, 60, 0))
    colour.convert('L').save(folder / 'gray.BMP')
    colour.convert('RGBA').save(folder / 'alpha.tif')
    colour.quantize(8).save(folder / 'palette.png')
    colour.save(folder / 'my photo.v2.png')
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / 'turned.jpg', exif=turned)
    (folder / 'notes.txt').write_text('no image')
    (folder / '.hidden.png').write_text('no image')
    assert build(folder, tmp_path / 'set') == 0
    assert sorted(path.stem for path in (tmp_path / 'set/HR').iterdir()) == [
        'alpha',
        'gray',
        'my_photo_v2',
        'palette',
        'turned',
    ]
    assert image_size(tmp_path / 'set/HR/turned.png') == (60, 48)
    gray = read_rgb(tmp_path / 'set/HR/gray.png')
    assert gray.shape == (48, 60, 3)
    assert np.array_equal(gray[..., 0], gray[..., 2])


def test_lr_made_elsewhere_is_used(source, tmp_path):
    official = tmp_path / 'X2'
    official.mkdir()
    lrs = {}
    for path in source.iterdir():
        height, width = image_size(path)
        lrs[path.stem] = photo(height // 2, width // 2, 99)  # unlike anything computed
        Image.fromarray(lrs[path.stem]).save(official / f'{path.stem}x2.png')
    assert build(source, tmp_path / 'set', '--scales', 2, 4, '--lr-dir', f'X2={official}') == 0
    assert np.array_equal(read_rgb(tmp_path / 'set/LR_bicubic/X2/001.png'), lrs['001'][:24, :30])
    hr = read_rgb(tmp_path / 'set/HR/001.png')
    assert np.array_equal(read_rgb(tmp_path / 'set/LR_bicubic/X4/001.png'), imresize_uint8(hr, 1 / 4))


@pytest.mark.parametrize('commit_bytes', [1, 64 << 20])
def test_lmdbs_hold_the_files(source, tmp_path, monkeypatch, commit_bytes):
    monkeypatch.setattr(lmdb_writer, '_COMMIT_BYTES', commit_bytes)
    assert build(source, tmp_path / 'set', '--scales', 2) == 0
    for folder, name in (('HR', 'HR.lmdb'), ('LR_bicubic/X2', 'LR_bicubic_X2.lmdb')):
        files = {path.stem: path.read_bytes() for path in (tmp_path / 'set' / folder).iterdir()}
        path = tmp_path / 'set' / name
        assert records(path) == files
        assert {file.name for file in path.iterdir()} == {'data.mdb', 'lock.mdb', 'meta_info.txt'}
        lines = (path / 'meta_info.txt').read_text().splitlines()
        sizes = {key: read_rgb(content).shape for key, content in files.items()}
        assert lines == [f'{key}.png ({h},{w},{c}) 3' for key, (h, w, c) in sorted(sizes.items())]
        assert read_meta_info(path) == sizes
        # whole pages for each value, and few for the tree
        assert (path / 'data.mdb').stat().st_size < sum(len(data) + 8192 for data in files.values()) + 16 * 4096


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
def test_stock_basicsr_reads_the_same_pairs(source, tmp_path, backend):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    assert build(source, tmp_path / 'set') == 0
    roots = {'disk': ('HR', 'LR_bicubic/X3'), 'lmdb': ('HR.lmdb', 'LR_bicubic_X3.lmdb')}[backend]
    dataset = PairedImageDataset(
        {
            'dataroot_gt': str(tmp_path / 'set' / roots[0]),
            'dataroot_lq': str(tmp_path / 'set' / roots[1]),
            'io_backend': {'type': backend},
            'scale': 3,
            'phase': 'val',
        }
    )
    assert len(dataset) == 3
    for item in (dataset[index] for index in range(3)):
        name = Path(item['gt_path']).stem
        for key, folder in (('gt', 'HR'), ('lq', 'LR_bicubic/X3')):
            expected = read_rgb(tmp_path / 'set' / folder / f'{name}.png')
            found = (item[key].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            assert np.array_equal(found, expected)


def test_demo_is_made_of_installed_photos_and_only_once(tmp_path, capsys):
    assert run('demo', '-o', tmp_path, '--workers', 1) == 0
    capsys.readouterr()
    parts = {part: {path.stem for path in (tmp_path / part / 'HR').iterdir()} for part in ('train', 'heldout')}
    assert len(parts['train']) >= 4
    assert 2 <= len(parts['heldout']) <= 3
    assert not parts['train'] & parts['heldout']
    assert len(list((tmp_path / 'train').glob('*.lmdb'))) == 8
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert run('demo', '-o', tmp_path) == 0
    assert capsys.readouterr().out.count('complete already') == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


def test_raw_lmdbs_hold_the_pixels(source, tmp_path):
    assert build(source, tmp_path / 'set', '--lmdb', 'raw', '--workers', 3) == 0
    for folder, name in (('HR', 'HR_raw.lmdb'), ('LR_bicubic/X3', 'LR_bicubic_X3_raw.lmdb')):
        files = {path.stem: read_rgb(path) for path in (tmp_path / 'set' / folder).iterdir()}
        store = RawLmdb(tmp_path / 'set' / name)
        assert store.keys == sorted(files)
        for index, key in enumerate(store.keys):
            assert np.array_equal(store.views([index])[0], files[key])
    assert run('verify', tmp_path / 'set', '--workers', 1) == 0


def unpack(folder, name, split, scales, digits, sizes, first=1):
    """A public data set as it is unpacked, with LR made of whole HR."""
    hr, lr = folder / f'{name}{split}_HR', folder / f'{name}{split}_LR_bicubic'
    hr.mkdir(parents=True)
    for number, size in enumerate(sizes, first):
        img, stem = photo(*size, number), f'{number:0{digits}d}'
        Image.fromarray(img).save(hr / f'{stem}.png')
        for scale in scales:
            (lr / f'X{scale}').mkdir(parents=True, exist_ok=True)
            small = imresize_uint8(img, 1 / scale)[: size[0] // scale, : size[1] // scale]
            Image.fromarray(small).save(lr / f'X{scale}' / f'{stem}x{scale}.png')
    return folder


def test_public_data_sets_as_they_are_unpacked(tmp_path):
    div2k = unpack(tmp_path / 'DIV2K', 'DIV2K', '_train', (2, 3), 4, [(48, 66), (60, 48)])
    flickr = unpack(tmp_path / 'Flickr2K', 'Flickr2K', '', (2, 4), 6, [(54, 48)])
    for path in div2k.rglob('X2/*.png'):  # as no one else would make it
        Image.fromarray(np.bitwise_xor(read_rgb(path), 1)).save(path)
    assert build(div2k, tmp_path / 'a', '--scales', 2, 4, '--no-lmdb') == 0
    given = read_rgb(div2k / 'DIV2K_train_LR_bicubic/X2/0001x2.png')
    assert np.array_equal(read_rgb(tmp_path / 'a/LR_bicubic/X2/0001.png'), given[:24, :32])
    hr = read_rgb(tmp_path / 'a/HR/0001.png')
    assert np.array_equal(read_rgb(tmp_path / 'a/LR_bicubic/X4/0001.png'), imresize_uint8(hr, 1 / 4))

    assert run('build', div2k, flickr, '-o', tmp_path / 'both', '--workers', 1, '--scales', 2, 3, '--no-lmdb') == 0
    assert sorted(path.stem for path in (tmp_path / 'both/HR').iterdir()) == ['000001', '0001', '0002']
    assert np.array_equal(read_rgb(tmp_path / 'both/LR_bicubic/X2/0001.png'), given[:24, :33])
    assert json.loads((tmp_path / 'both/prepare.json').read_text())['options']['lr_dirs'] == [2]  # not both have X3

    assert build(div2k, tmp_path / 'own', '--scales', 2, '--no-lmdb', '--make-lr') == 0
    assert run('verify', tmp_path / 'own', '--workers', 1) == 0


def test_plain_folders_are_merged(source, tmp_path, capsys):
    photos(tmp_path / 'more', [(48, 48)])
    assert run('build', source, tmp_path / 'more', '-o', tmp_path / 'set', '--workers', 1) == 2
    assert '001.png and 001.png: both 001.png' in message(capsys)
    (tmp_path / 'more/001.png').rename(tmp_path / 'more/x.png')
    assert run('build', source, tmp_path / 'more', '-o', tmp_path / 'set', '--workers', 1, '--no-lmdb') == 0
    assert len(list((tmp_path / 'set/HR').iterdir())) == 4


# Going on


def test_killed_build_goes_on_and_ends_the_same(tmp_path):
    folder = photos(tmp_path / 'in', [(120, 180)] * 80)
    code = """
import sys
from pisr_plugin.utils import parallel
from pisr_plugin.cli import prepare_data
parallel._START_SECONDS = 0  # do not wait until workers are worth it
prepare_data.main(sys.argv[1:])
"""
    argv = ['build', folder, '-o', tmp_path / 'set', '--no-lmdb', '--workers', 2]
    process = start('-c', code, *argv, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while len(list((tmp_path / 'set').glob('HR/*.png'))) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _alive(process.pid):  # its workers see that it is gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / 'set/HR').glob('*.png')}
    assert 4 <= len(finished) < 80
    assert json.loads((tmp_path / 'set/prepare.json').read_text())['done'] == []
    assert all(read_rgb(path).size for path in (tmp_path / 'set').rglob('[!.]*.png'))  # whole or absent

    assert build(folder, tmp_path / 'set', '--no-lmdb') == 0
    assert build(folder, tmp_path / 'unbroken', '--no-lmdb') == 0
    assert content(tmp_path / 'set') == content(tmp_path / 'unbroken')
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())  # not made twice
    assert not list((tmp_path / 'set').rglob('.*'))


def _alive(session):
    """Whether a process of a session is left, zombies not counted."""
    found = subprocess.run(['ps', '-s', str(session), '-o', 'stat='], capture_output=True, text=True).stdout.split()
    return any(not state.startswith('Z') for state in found)


@pytest.mark.parametrize('function', ['build.write_png', 'png_lmdb.image_size', 'layout.save_record'])
def test_kill_inside_a_step_leaves_nothing_half(source, tmp_path, function):
    module, name = function.split('.')
    code = f"""
import os, signal, sys
from pisr_plugin.data.prepare import build
from pisr_plugin.data.storage import png_lmdb
from pisr_plugin.data.prepare import layout
from pisr_plugin.cli import prepare_data
original, calls = {function}, []
def fatal(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
{module}.{name} = build.{name} = fatal
prepare_data.main(sys.argv[1:])
"""
    argv = ['build', source, '-o', tmp_path / 'set', '--workers', 1, '--scales', 2]
    process = start('-c', code, *argv, cwd=tmp_path)
    told = outputs([process])
    assert process.returncode == -signal.SIGKILL, told
    assert all(len(records(path)) == 3 for path in (tmp_path / 'set').glob('[!.]*.lmdb'))
    assert run(*argv) == 0
    assert build(source, tmp_path / 'unbroken', '--scales', 2) == 0
    assert content(tmp_path / 'set') == content(tmp_path / 'unbroken')
    assert not list((tmp_path / 'set').rglob('.*'))


def test_complete_set_is_left_alone_and_lmdbs_can_follow(source, tmp_path, capsys):
    assert build(source, tmp_path / 'set', '--no-lmdb') == 0
    before = content(tmp_path / 'set')
    capsys.readouterr()
    assert build(source, tmp_path / 'set', '--no-lmdb') == 0
    assert 'complete already' in capsys.readouterr().out
    assert content(tmp_path / 'set') == before
    assert build(source, tmp_path / 'set', '--lmdb', 'raw') == 0
    assert sorted(path.name for path in (tmp_path / 'set').glob('*.lmdb')) == [
        'HR_raw.lmdb',
        'LR_bicubic_X2_raw.lmdb',
        'LR_bicubic_X3_raw.lmdb',
        'LR_bicubic_X4_raw.lmdb',
    ]
    assert build(source, tmp_path / 'set') == 0
    assert len(list((tmp_path / 'set').glob('*.lmdb'))) == 8


def test_ctrl_c_is_no_traceback(source, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, 'write_png', interrupt)
    assert build(source, tmp_path / 'set') == 130
    assert 'run the same command again' in capsys.readouterr().err


# Mistakes


def test_input_missing_or_empty(tmp_path, capsys):
    assert build(tmp_path / 'nowhere', tmp_path / 'set') == 2
    assert 'nowhere: no such folder' in message(capsys)
    (tmp_path / 'notes.txt').write_text('no image')
    assert build(tmp_path, tmp_path / 'set') == 2
    assert 'no images' in message(capsys)
    assert build(tmp_path / 'notes.txt', tmp_path / 'set') == 2
    assert 'not a folder' in message(capsys)
    assert not (tmp_path / 'set').exists()


def test_bad_photos_are_all_named_and_the_rest_is_kept(source, tmp_path, capsys):
    folder = shutil.copytree(source, tmp_path / 'in')
    Image.fromarray(photo(64, 64, 5)).save(tmp_path / 'whole.jpg')
    (folder / 'cut_photo.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:700])
    (folder / 'cut.png').write_bytes((source / '001.png').read_bytes()[:3000])
    (folder / 'text.png').write_text('no image')
    cv2.imwrite(str(folder / 'deep.png'), np.zeros((48, 48), np.uint16))
    Image.fromarray(photo(8, 40, 6)).save(folder / 'small.png')
    assert build(folder, tmp_path / 'set') == 2
    told = message(capsys)
    assert '5 of 8 photos' in told
    for name, why in {
        'cut_photo.jpg': 'truncated',
        'cut.png': 'truncated',
        'text.png': 'not an image',
        'deep.png': '8 bits',
        'small.png': '0 x 36',
    }.items():
        assert re.search(f'{name}: .*{why}', told)
    assert len(list((tmp_path / 'set/HR').iterdir())) == 3
    assert run('verify', tmp_path / 'set') == 2
    assert 'stopped before it was finished' in message(capsys)

    for name in ('cut_photo.jpg', 'cut.png', 'text.png', 'small.png'):
        (folder / name).unlink()
    Image.fromarray(photo(48, 48, 7)).save(folder / 'deep.png')
    assert build(folder, tmp_path / 'set') == 0
    assert run('verify', tmp_path / 'set') == 0


def test_photo_smaller_than_a_sub_image(source, tmp_path, capsys):
    assert build(source, tmp_path / 'set', '--sub-images', 48, '--step', 24) == 2
    told = message(capsys)
    assert '1 of 3 photos' in told
    assert re.search(r'003.png: 36 x 84 .* less than a sub-image, 48', told)


def test_photos_whose_names_fall_together(source, tmp_path, capsys):
    folder = shutil.copytree(source, tmp_path / 'in')
    shutil.copy(folder / '001.png', folder / 'a.b.png')
    shutil.copy(folder / '001.png', folder / 'a b.png')
    assert build(folder, tmp_path / 'set') == 2
    assert 'a b.png and a.b.png: both a_b.png' in message(capsys)
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize(
    'argv, told',
    [
        (['--scales', 1, 2], '--scales: impossible (found 1 2)'),
        (['--scales', 2, 2], '--scales: a scale twice (found 2 2)'),
        (['--scales', 10**9], '--scales: impossible'),
        (['--workers', 0], '--workers: impossible (found 0). Expected 1 to 256.'),
        (['--workers', -1], '--workers: impossible (found -1)'),
        (['--thresh', -1], '--thresh: impossible (found -1)'),
        (['--sub-images', 100], '(found 100). Expected a multiple of 12'),
        (['--sub-images', 48, '--step', 10], '--step: sub-images of HR and LR would show different parts (found 10)'),
        (['--sub-images', 48, '--step', 24, '--crop', 'scale'], 'exactly scale * LR (found scale). Expected lcm.'),
        (['--lr-dir', 'X2'], "--lr-dir: not a scale and a folder (found 'X2')"),
        (['--lr-dir', 'X2=nowhere'], 'nowhere is not a folder'),
        (['--lr-dir', 'X8=.'], '--lr-dir: not a scale (found X8). Expected one of 2 3 4.'),
    ],
)
def test_options_that_do_not_fit(source, tmp_path, capsys, argv, told):
    assert build(source, tmp_path / 'set', *argv) == 2
    assert told in message(capsys)
    assert not (tmp_path / 'set').exists()


def test_given_lr_of_wrong_size_or_missing(source, tmp_path, capsys):
    official = tmp_path / 'X2'
    official.mkdir()
    Image.fromarray(photo(24, 30, 0)).save(official / '001x2.png')
    Image.fromarray(photo(30, 25, 0)).save(official / '002.png')
    assert build(source, tmp_path / 'set', '--lr-dir', f'X2={official}') == 2
    told = message(capsys)
    assert '2 of 3 photos' in told
    assert '002.png: 30 x 25 (height x width); 1/2 of 002.png is 30 x 24' in told
    assert 'no LR image for 003.png; looked for 003 and 003x2' in told


def test_folder_of_another_set_is_left_as_it_is(source, tmp_path, capsys):
    assert build(source, tmp_path / 'set', '--no-lmdb') == 0
    other = photos(tmp_path / 'other', [(49, 61), (60, 48)])
    before = {path: path.read_bytes() for path in (tmp_path / 'set').rglob('*') if path.is_file()}
    capsys.readouterr()
    assert build(source, tmp_path / 'set', '--scales', 2, 4) == 2
    assert 'scales: 2 3 4 there, 2 4 asked for' in message(capsys)
    assert build(other, tmp_path / 'set') == 2
    told = message(capsys)
    assert 'holds another data set' in told
    assert '003.png: missing now' in told
    assert 'Nothing was changed' in told
    shutil.copytree(source, tmp_path / 'more')
    shutil.copy(source / '001.png', tmp_path / 'more/004.png')
    assert build(tmp_path / 'more', tmp_path / 'set') == 2
    assert '004.png: new' in message(capsys)
    assert before == {path: path.read_bytes() for path in (tmp_path / 'set').rglob('*') if path.is_file()}


def test_folder_with_images_of_others_is_left_as_it_is(source, tmp_path, capsys):
    shutil.copytree(source, tmp_path / 'set/HR')
    assert build(tmp_path / 'set/HR', tmp_path / 'set') == 2
    assert 'holds HR, not built by prepare_data' in message(capsys)
    assert [path.name for path in (tmp_path / 'set').iterdir()] == ['HR']
    (tmp_path / 'set/prepare.json').write_text('{"options": ')
    assert build(source, tmp_path / 'set') == 2
    assert 'prepare.json is not JSON' in message(capsys)


def test_unwritable_output(source, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert build(source, tmp_path / 'file/set') == 2
    assert 'Not a directory' in message(capsys)


def test_full_disk(source, tmp_path, monkeypatch, capsys):
    original, calls = os.replace, []

    def full(*args):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    monkeypatch.setattr(os, 'replace', full)
    assert build(source, tmp_path / 'set') == 2
    told = message(capsys)
    assert 'No space left on device' in told
    assert 'run the same command again' in told
    assert not (tmp_path / 'set/LR_bicubic/X3/001.png').exists()  # the fourth file, after prepare.json, HR and X2
    assert not list((tmp_path / 'set').rglob('.*'))
    assert build(source, tmp_path / 'set') == 0


def test_full_disk_under_an_lmdb(source, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise lmdb.DiskError('No space left on device')

    monkeypatch.setattr(lmdb_writer, '_fill', full)
    assert build(source, tmp_path / 'set') == 2
    assert 'HR.lmdb: LMDB could not be written: No space left' in message(capsys)
    monkeypatch.undo()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'rename', fail)
    assert build(source, tmp_path / 'set') == 2
    assert 'No space left on device' in message(capsys)
    assert sorted(path.name for path in (tmp_path / 'set').iterdir()) == ['HR', 'LR_bicubic', 'prepare.json']
    monkeypatch.undo()
    assert build(source, tmp_path / 'set') == 0


# Checking again


@pytest.fixture(scope='module')
def made(source, tmp_path_factory):
    root = tmp_path_factory.mktemp('made') / 'set'
    assert build(source, root, '--scales', 2, 3) == 0
    return root


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_line(path):
    path.write_text(path.read_text().replace('\n001', '\n004').replace('001.png', '004.png'))


def _change_record(path):
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b'002', txn.get(b'002')[:100])
        txn.delete(b'003')


def _change_pixel(path):
    """Changes one bit of the second image."""
    offset = int((path / 'images.txt').read_text().splitlines()[2].split()[-1])
    content = bytearray((path / 'data.mdb').read_bytes())
    content[offset + 1000] ^= 1
    (path / 'data.mdb').write_bytes(content)


def _swap_sides(path, mend=False):
    """Swaps height and width of the first image of a list; mended, the list's own checksum does not show it."""
    text = path.read_text().replace('48 60', '60 48').replace('(48,60', '(60,48')
    if mend:
        lines = text.splitlines()[:-1]
        text = '\n'.join([*lines, f'checksum {zlib.crc32(chr(10).join(lines).encode()):08x}\n'])
    path.write_text(text)


def _brighten(path):
    Image.fromarray(np.minimum(read_rgb(path), 245) + np.uint8(10)).save(path)


@pytest.mark.parametrize(
    'break_it, told',
    [
        (lambda root: (root / 'HR/002.png').unlink(), ['HR: 002: missing']),
        (lambda root: _cut(root / 'LR_bicubic/X3/001.png'), ['LR_bicubic/X3: 001: ', 'truncated']),
        (
            lambda root: shutil.copy(root / 'LR_bicubic/X2/001.png', root / 'LR_bicubic/X3/001.png'),
            ['LR_bicubic/X3: 001: 24 x 30 does not fit HR of 48 x 60 at scale 3'],
        ),
        (lambda root: shutil.copy(root / 'HR/001.png', root / 'HR/new.png'), ['HR: new: not part of this data set']),
        (lambda root: shutil.rmtree(root / 'LR_bicubic_X2.lmdb'), ['LR_bicubic_X2.lmdb']),
        (lambda root: _cut(root / 'HR.lmdb/data.mdb'), ['HR.lmdb', 'cut off']),
        (
            lambda root: _replace_line(root / 'HR.lmdb/meta_info.txt'),
            ['meta_info.txt: 001: not listed', '004: not part'],
        ),
        (lambda root: (root / 'HR.lmdb/meta_info.txt').write_text('001.png\n'), ['meta_info.txt, line 1']),
        (lambda root: _change_record(root / 'HR.lmdb'), ['HR.lmdb: 002: ', 'HR.lmdb: 003: missing']),
        (
            lambda root: _brighten(root / 'LR_bicubic/X2/002.png'),
            ["LR_bicubic/X2: 002: not MATLAB's bicubic of HR: ", '% of the values differ, by up to 10'],
        ),
        (lambda root: _change_pixel(root / 'HR_raw.lmdb'), ['1 problems', 'HR_raw.lmdb: 002: changed']),
        (lambda root: _cut(root / 'HR_raw.lmdb/data.mdb'), ['HR_raw.lmdb: data.mdb is damaged or cut off']),
        (lambda root: shutil.rmtree(root / 'LR_bicubic_X2_raw.lmdb'), ['LR_bicubic_X2_raw.lmdb', 'No such file']),
        (
            lambda root: _replace_line(root / 'HR_raw.lmdb/images.txt'),
            ['HR_raw.lmdb/images.txt: damaged'],
        ),
        (
            lambda root: _swap_sides(root / 'HR.lmdb/meta_info.txt'),
            ['HR.lmdb: 001: 48 x 60 x 3 (height x width x channels), not as meta_info.txt lists it'],
        ),
        (lambda root: _swap_sides(root / 'HR_raw.lmdb/images.txt'), ['HR_raw.lmdb/images.txt: damaged']),
        (lambda root: _swap_sides(root / 'HR_raw.lmdb/images.txt', mend=True), ['HR_raw.lmdb: 001: changed']),
    ],
)
def test_verify_finds_what_is_wrong(made, tmp_path, capsys, break_it, told):
    root = shutil.copytree(made, tmp_path / 'set')
    assert run('verify', root, '--workers', 1) == 0
    break_it(root)
    assert run('verify', root, '--workers', 1) == 2
    found = message(capsys)
    for fragment in told:
        assert fragment in found


def test_verify_holds_given_lr_to_its_name(source, tmp_path, capsys):
    for name in ('other', 'bicubic'):
        folder = tmp_path / name
        folder.mkdir()
        for path in source.iterdir():
            height, width = image_size(path)
            Image.fromarray(photo(height // 2, width // 2, 99)).save(folder / path.name)
        assert build(source, tmp_path / f'set_{name}', '--scales', 2, '--lr-dir', f'X2={folder}', '--no-lmdb') == 0
    assert run('verify', tmp_path / 'set_other', '--workers', 1) == 0
    assert run('verify', tmp_path / 'set_bicubic', '--workers', 1) == 2
    assert '3 problems' in message(capsys)


def test_verify_takes_lr_made_before_hr_was_cropped(tmp_path):
    unpack(tmp_path / 'DIV2K', 'DIV2K', '_train', (2, 3), 4, [(70, 70)])  # cropped to 66
    assert build(tmp_path / 'DIV2K', tmp_path / 'set', '--scales', 2, 3, '--lmdb', 'raw') == 0
    lr = read_rgb(tmp_path / 'set/LR_bicubic/X2/0001.png')
    assert not np.array_equal(lr, imresize_uint8(read_rgb(tmp_path / 'set/HR/0001.png'), 1 / 2))
    assert run('verify', tmp_path / 'set', '--workers', 1) == 0
    shutil.rmtree(tmp_path / 'set/HR')
    assert run('verify', tmp_path / 'set', '--workers', 1) == 0


def test_verify_without_image_files_and_of_what_is_no_set(made, tmp_path, capsys):
    root = shutil.copytree(made, tmp_path / 'set')
    shutil.rmtree(root / 'HR')
    shutil.rmtree(root / 'LR_bicubic')
    assert run('verify', root, '--workers', 1) == 0
    assert run('verify', tmp_path / 'nowhere') == 2
    assert 'not built by prepare_data' in message(capsys)


def test_shrunk_copies_are_matlabs_and_kept(tmp_path, capsys):
    photos(tmp_path / 'photos', [(40, 50), (60, 30)])
    run = ['shrink', str(tmp_path / 'photos'), '-o', str(tmp_path / 'sizes'), '--factors', '1', '0.9', '0.6']
    assert prepare_data.main(run) == 0
    assert len(list((tmp_path / 'sizes').iterdir())) == 6
    whole = read_rgb(tmp_path / 'photos/001.png')
    assert np.array_equal(read_rgb(tmp_path / 'sizes/001_100.png'), whole)
    assert np.array_equal(read_rgb(tmp_path / 'sizes/001_060.png'), imresize_uint8(whole, 0.6))
    assert read_rgb(tmp_path / 'sizes/002_090.png').shape == (54, 27, 3)
    before = (tmp_path / 'sizes/001_060.png').stat().st_mtime_ns
    assert prepare_data.main(run) == 0
    assert (tmp_path / 'sizes/001_060.png').stat().st_mtime_ns == before
    assert prepare_data.main([*run[:-1], '1.5']) == 2
    assert '--factors: impossible (found 1.5)' in capsys.readouterr().err
