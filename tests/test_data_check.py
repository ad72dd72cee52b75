"""check_dataset: what training needs of its data, told before training."""

import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from pisr_plugin.data.datasets.check import check_dataset
from pisr_plugin.data.prepare.build import PairOptions, build
from pisr_plugin.utils.errors import DataError, OptionsError

BACKENDS = {'disk': ('HR', 'LR_bicubic/X{}'), 'lmdb': ('HR.lmdb', 'LR_bicubic_X{}.lmdb')}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Two data sets of the same photos: 'train' with exact pairs, 'val' with whole HR."""
    folder = tmp_path_factory.mktemp('data')
    (folder / 'in').mkdir()
    for number, size in enumerate([(49, 61), (60, 48), (73, 37)]):
        img = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(img).save(folder / f'in/00{number}.png')
    sources = sorted((folder / 'in').iterdir())
    build(sources, folder / 'train', PairOptions(), workers=1)
    build(sources, folder / 'val', PairOptions(crop='scale'), workers=1)
    return folder


@pytest.fixture
def data(made, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(made, tmp_path / 'data')


def block(root, backend, scale, **changes):
    gt, lq = BACKENDS[backend]
    return {
        'name': 'x',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(root / gt),
        'dataroot_lq': str(root / lq.format(scale)),
        'io_backend': {'type': backend},
        'gt_size': 24,
        **changes,
    }


def told(opt, option_path='datasets.train', scale=2, error=DataError):
    """The message about a block, which starts with its place."""
    with pytest.raises(error) as raised:
        check_dataset(opt, option_path, scale)
    assert str(raised.value).startswith(option_path)
    return str(raised.value)


def write_records(path, change):
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        change(txn)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_prepared_data_passes_and_its_block_is_left_alone(made, backend, scale):
    for phase in ('train', 'val'):
        opt = block(made / phase, backend, scale, phase=phase)
        before = repr(opt)
        check_dataset(opt, f'datasets.{phase}', scale)
        assert repr(opt) == before


@pytest.mark.parametrize('backend', BACKENDS)
def test_wrong_scale(made, backend):
    message = told(block(made / 'train', backend, 4))
    assert '3 of 3 pairs do not fit scale 2' in message
    assert '000' in message and 'HR 48 x 60 (height x width), LR 12 x 15' in message
    assert 'The pair looks like scale 4.' in message
    assert 'looks like scale 4' in told(block(made / 'val', backend, 4), option_path='datasets.val')


def test_phase_decides_whether_hr_may_be_larger(made):
    opt = block(made / 'val', 'disk', 3)
    check_dataset(opt, 'datasets.val_2', 3)
    check_dataset({**opt, 'phase': 'val'}, 'datasets.train', 3)
    message = told(opt, scale=3)
    assert 'looks like scale 3 with HR that is not cropped; build it with --crop lcm' in message


def test_images_that_are_no_pair(data):
    Image.new('RGB', (31, 24)).save(data / 'train/LR_bicubic/X2/000.png')
    message = told(block(data / 'train', 'disk', 2))
    assert '1 of 3 pairs' in message and 'does not look like any scale' in message


@pytest.mark.parametrize('key', ['dataroot_gt', 'dataroot_lq'])
@pytest.mark.parametrize(
    'root, command',
    [
        ('datasets/DIV2K/train', 'pisr-prepare-data build PHOTOS -o datasets/DIV2K/train'),
        ('datasets/demo/train', 'pisr-prepare-data demo -o datasets/demo'),
    ],
)
@pytest.mark.parametrize('backend', BACKENDS)
def test_missing_root_comes_with_the_command(made, key, root, command, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where none of these exist, also after a demo
    opt = block(made / 'train', backend, 2)
    opt[key] = block(Path(root), backend, 2)[key]
    message = told(opt)
    assert message.startswith(f'datasets.train.{key}: {opt[key]} does not exist')
    assert message.endswith(command)


def test_unusual_scale_is_part_of_the_command():
    assert told(block(Path('datasets/x'), 'disk', 8), scale=8).endswith('-o datasets/x --scales 8')


def test_block_of_an_unknown_backend(made):
    message = told(block(made / 'train', 'disk', 2, io_backend={'type': 'lmbd'}), error=OptionsError)
    assert "datasets.train.io_backend.type: unknown (found 'lmbd'). Did you mean 'lmdb'?" in message


def test_backend_of_the_other_kind(made):
    assert 'io_backend: {type: disk}' in told(block(made / 'train', 'disk', 2, io_backend={'type': 'lmdb'}))
    assert 'is an LMDB, but' in told(block(made / 'train', 'lmdb', 2, io_backend={'type': 'disk'}))


@pytest.mark.parametrize('length', [100, 9000])
def test_truncated_lmdb(data, length):
    path = data / 'train/HR.lmdb/data.mdb'
    path.write_bytes(path.read_bytes()[:length])
    message = told(block(data / 'train', 'lmdb', 2))
    assert message.startswith('datasets.train.dataroot_gt: ') and 'HR.lmdb' in message


def test_lmdb_without_data_or_list(data):
    (data / 'train/HR.lmdb/meta_info.txt').unlink()
    assert 'HR.lmdb/meta_info.txt: No such file' in told(block(data / 'train', 'lmdb', 2))
    (data / 'train/HR.lmdb/meta_info.txt').write_text('000.png (48,60,3) 3\n00.1.png (48,60,3) 3\n')
    assert "meta_info.txt, line 2: expected 'name.png" in told(block(data / 'train', 'lmdb', 2))
    (data / 'train/LR_bicubic_X2.lmdb/data.mdb').unlink()
    (data / 'train/HR.lmdb/meta_info.txt').write_text('000.png (48,60,3) 3\n')
    assert 'dataroot_lq: ' in told(block(data / 'train', 'lmdb', 2))


def test_lmdb_that_lost_a_record(data):
    write_records(data / 'train/LR_bicubic_X2.lmdb', lambda txn: txn.delete(b'001'))
    assert 'lists 3 images in meta_info.txt, but 001 is not in it' in told(block(data / 'train', 'lmdb', 2))


def test_lmdbs_of_different_images(data):
    path = data / 'train/HR.lmdb/meta_info.txt'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:2]))
    message = told(block(data / 'train', 'lmdb', 2))
    assert 'only in' in message and 'LR_bicubic_X2.lmdb: 002' in message


def test_file_without_partner(data):
    (data / 'train/LR_bicubic/X2/001.png').unlink()
    message = told(block(data / 'train', 'disk', 2))
    assert 'has no 001.png, the LR image of 001.png' in message
    opt = block(data / 'train', 'disk', 4, filename_tmpl='{}x4')
    assert 'has no 000x4.png' in told(opt, scale=4)
    assert "filename_tmpl is '{}x4'). Did you mean '000.png'" in told(opt, scale=4)
    assert "filename_tmpl: no {} (found 'x4')" in told({**opt, 'filename_tmpl': 'x4'}, scale=4, error=OptionsError)


def test_file_names_with_a_suffix(data):
    for path in list((data / 'train/LR_bicubic/X2').iterdir()):
        path.rename(path.with_name(f'{path.stem}x2.png'))
    check_dataset(block(data / 'train', 'disk', 2, filename_tmpl='{}x2'), 'datasets.train', 2)


def test_files_that_should_not_be_there(data):
    Image.new('RGB', (24, 24)).save(data / 'train/LR_bicubic/X2/other.png')
    assert 'differ in their numbers of files (found 3 in' in told(block(data / 'train', 'disk', 2))
    (data / 'train/HR/Thumbs.db').write_text('no image')
    (data / 'train/LR_bicubic/X2/Thumbs.db').write_text('no image')
    assert 'Thumbs.db: not an image' in told(block(data / 'train', 'disk', 2))


def test_folder_without_images(data):
    for folder in ('HR', 'LR_bicubic/X2'):
        shutil.rmtree(data / 'train' / folder)
        (data / 'train' / folder).mkdir()
    assert 'holds no images' in told(block(data / 'train', 'disk', 2))


def test_list_of_files(data, tmp_path):
    names = tmp_path / 'names.txt'
    opt = block(data / 'train', 'disk', 2, meta_info_file=str(names))
    assert 'datasets.train.meta_info_file: ' in told(opt)
    names.write_text('000.png (48,60,3)\n002.png (72,36,3)\n')
    (data / 'train/HR/001.png').unlink()
    check_dataset(opt, 'datasets.train', 2)
    names.write_text('001.png (60,48,3)\n')
    assert 'it lists an image that is not in' in told(opt) and '(found 001.png)' in told(opt)


@pytest.mark.parametrize('backend', BACKENDS)
def test_patches_must_fit_into_every_image(made, backend):
    message = told(block(made / 'train', backend, 2, gt_size=40))
    assert 'gt_size: larger than 1 of the 3 HR images, 002' in message
    assert '(found 40; ' in message and 'Expected at most 36' in message
    assert message == told(block(made / 'train', backend, 2, gt_size=40, skip_small=True)), 'only a patch store skips'
    check_dataset(block(made / 'train', backend, 2, gt_size=36), 'datasets.train', 2)
    check_dataset(block(made / 'train', backend, 2, gt_size=None, phase='val'), 'datasets.val', 2)
    assert 'not a multiple of the scale, 2 (found 25). Expected 24 or 26.' in told(
        block(made / 'train', backend, 2, gt_size=25), error=OptionsError
    )


def raw_block(root, scale, **changes):
    opt = block(root, 'lmdb', scale, type='PatchStoreDataset')
    del opt['io_backend']
    for key in ('dataroot_gt', 'dataroot_lq'):
        opt[key] = opt[key].replace('.lmdb', '_raw.lmdb')
    return {**opt, **changes}


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_patch_store_passes(made, scale):
    for phase in ('train', 'val'):
        check_dataset(raw_block(made / phase, scale, phase=phase, store='device'), f'datasets.{phase}', scale)
    check_dataset(raw_block(made / 'val', scale, dataroot_lq=None), 'datasets.train', scale)  # LR fits by itself


def test_patch_store_that_does_not_fit(made):
    message = told(raw_block(made / 'train', 4))
    assert '3 of 3 pairs do not fit scale 2' in message and 'looks like scale 4' in message
    message = told(raw_block(made / 'train', 2, gt_size=40))
    assert 'gt_size: larger than 1 of the 3 HR images, 002' in message and 'Expected at most 36' in message
    assert message.endswith('or to leave those images out (skip_small: true).')
    check_dataset(raw_block(made / 'train', 2, gt_size=40, skip_small=True), 'datasets.train', 2)
    message = told(raw_block(made / 'train', 2, gt_size=4000, skip_small=True))
    assert 'gt_size: larger than 3 of the 3 HR images' in message and 'skip_small' not in message
    assert 'gt_size: larger than 1 of' in told(raw_block(made / 'train', 2, gt_size=40, dataroot_lq=None))
    assert 'not a multiple of the scale, 2' in told(raw_block(made / 'train', 2, gt_size=25), error=OptionsError)


def test_patch_store_that_is_damaged_or_of_the_other_kind(data):
    opt = raw_block(data / 'train', 2)
    assert 'It holds PNG files, for PairedImageDataset' in told({**opt, 'dataroot_gt': str(data / 'train/HR.lmdb')})
    other = block(data / 'train', 'lmdb', 2, dataroot_gt=opt['dataroot_gt'])
    assert 'holds decoded images. Expected type: PatchStoreDataset' in told(other)
    message = told({**opt, 'dataroot_lq': str(data / 'train/X2_raw.lmdb')})
    assert message.startswith('datasets.train.dataroot_lq: ') and 'does not exist' in message
    path = data / 'train/LR_bicubic_X2_raw.lmdb/data.mdb'
    path.write_bytes(path.read_bytes()[:9000])
    message = told(opt)
    assert message.startswith('datasets.train.dataroot_lq: ') and 'damaged or cut off' in message


def test_other_datasets_are_only_checked_for_their_roots(made, tmp_path):
    check_dataset({'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path)}, 'datasets.test', 2)
    assert 'does not exist' in told({'type': 'FFHQDataset', 'dataroot_gt': 'nowhere'})
