"""Photos of every kind go in, larger photos come out, and nothing of the user's is overwritten."""

from __future__ import annotations

import re
import resource
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational

from pisr_plugin import load_model
from pisr_plugin.cli import upscale as command
from pisr_plugin.cli.upscale import main as upscale
from pisr_plugin.data.storage.photo_files import FORMATS, read_photo
from pisr_plugin.data.storage.photo_writer import write_photo
from pisr_plugin.inference import tiles
from pisr_plugin.inference.card import Card, checksum, write_card
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.utils.errors import OptionsError
from pisr_plugin.utils.resize import bicubic_upsample

FSRCNN = {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1}
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
SWINIR = {'type': 'SwinIR', 'window_size': 8, 'img_size': 24, 'depths': [2], 'num_heads': [2], 'embed_dim': 12}
SWINIR |= {'upsampler': 'pixelshuffledirect'}
RFDN = {'type': 'RFDN', 'num_feat': 8, 'num_block': 1}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
ORIENTATION, MAKER, DETAILS, WIDTH = 0x0112, 0x010F, 0x8769, 0xA002


def save_model(folder: Path, name: str, options: dict, scale: int, color: str) -> Path:
    """Writes random weights and their card."""
    torch.manual_seed(0)
    path = folder / f'{name}.pth'
    torch.save({'params': build_network({**options, 'upscale': scale}).state_dict()}, path)
    write_card(Card(path, {**options, 'upscale': scale}, scale, color, sha256=checksum(path)))
    return path


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and a zoo elsewhere with FSRCNN x2, x3 (luminance) and RFDN x2 (RGB)."""
    zoo = tmp_path / 'zoo'
    zoo.mkdir()
    monkeypatch.setenv('PISR_MODELS', str(zoo))
    save_model(zoo, 'fsrcnn_x2', FSRCNN, 2, 'y')
    save_model(zoo, 'fsrcnn_x3', FSRCNN, 3, 'y')
    save_model(zoo, 'rfdn_s_x2', RFDN, 2, 'rgb')
    (tmp_path / 'desk').mkdir()
    monkeypatch.chdir(tmp_path / 'desk')
    return tmp_path / 'desk'


def smooth(height: int = 13, width: int = 20, channels: int = 3) -> np.ndarray:
    """Returns pixels that compress well, so that formats with loss keep them nearly."""
    small = np.random.default_rng(0).integers(40, 216, (3, 4, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def picture(mode: str = 'RGB') -> Image.Image:
    return Image.fromarray(smooth()).convert(mode)


def noted(orientation: int = 6) -> Image.Exif:
    """Returns what a camera that was turned writes."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKER] = orientation, 'Maker'
    exif.get_ifd(DETAILS)[WIDTH] = 20
    exif[DETAILS] = exif.get_ifd(DETAILS)
    return exif


def opened(path: str | Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    return image


def files(folder: str | Path = '.') -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*') if path.is_file())


def test_a_photo_alone_becomes_twice_as_large_beside_itself(desk, capsys):
    picture().save('photo.jpg')
    assert upscale(['photo.jpg']) == 0
    assert files() == ['photo.jpg', 'photo_x2.png']
    assert 'photo_x2.png: 20x13 to 40x26' in capsys.readouterr().out
    expected = load_model('fsrcnn_x2').upscale(np.asarray(opened('photo.jpg')))
    assert np.array_equal(np.asarray(opened('photo_x2.png')), expected)
    assert upscale(['photo.jpg', '--scale', '3']) == 0
    assert opened('photo_x3.png').size == (60, 39)


def rgba() -> Image.Image:
    image = picture()
    image.putalpha(Image.linear_gradient('L').resize(image.size))
    return image


KINDS = {
    'photo.jpg': (lambda path: picture().save(path, exif=noted(), icc_profile=SRGB, quality=95), 'RGB'),
    'alpha.png': (lambda path: rgba().save(path, exif=noted()), 'RGBA'),
    'gray.png': (lambda path: picture('L').save(path), 'L'),
    'gray_alpha.png': (lambda path: rgba().convert('LA').save(path), 'LA'),
    'palette.png': (lambda path: picture().quantize(64).save(path), 'RGB'),
    'clear.png': (lambda path: picture().quantize(64).save(path, transparency=3), 'RGBA'),
    'line art.png': (lambda path: picture('1').save(path), 'L'),
    'print.jpg': (lambda path: picture('CMYK').save(path, quality=95), 'RGB'),
    'sun.webp': (lambda path: picture().save(path, exif=noted(), icc_profile=SRGB, lossless=True), 'RGB'),
    'scan.tif': (lambda path: picture().save(path, exif=noted(), icc_profile=SRGB), 'RGB'),
    'scan.bmp': (lambda path: picture().save(path), 'RGB'),
    'new.avif': (lambda path: picture().save(path, exif=noted(), quality=95), 'RGB'),
    '写真 é.jpeg': (lambda path: picture().save(path, quality=95), 'RGB'),
}


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_photo_keeps_its_kind(desk, name):
    save, mode = KINDS[name]
    save(name)
    assert upscale([name, '-o', 'out']) == 0
    result = opened(Path('out', f'{Path(name).stem}_x2.png'))
    before = opened(name)
    turned = mode == 'RGBA' and name == 'alpha.png' or 'exif' in before.info or name == 'scan.tif'
    assert (result.mode, result.size) == (mode, (26, 40) if turned else (40, 26))
    upright = read_photo(Path(name)).array()
    assert np.array_equal(np.asarray(result), load_model('fsrcnn_x2').upscale(upright))
    assert result.info.get('icc_profile') == before.info.get('icc_profile')
    if turned:
        assert (result.getexif().get(MAKER), result.getexif().get(ORIENTATION)) == ('Maker', None)


def test_a_turned_photo_is_made_upright_and_its_notes_stay_true(desk):
    for orientation in range(1, 9):
        name = f'{orientation}.png'
        picture().save(name, exif=noted(orientation))
        cv2.imwrite(f'deep_{name}', smooth()[..., ::-1].astype(np.uint16) * 257)
        exif = np.frombuffer(noted(orientation).tobytes(), np.uint8)
        encoded = cv2.imencodeWithMetadata(
            '.png', smooth()[..., ::-1].astype(np.uint16) * 257, [cv2.IMAGE_METADATA_EXIF], [exif]
        )[1]
        Path(f'deep_{name}').write_bytes(encoded.tobytes())
        shallow, deep = read_photo(Path(name)), read_photo(Path(f'deep_{name}'))
        assert shallow.size == ((13, 20) if orientation < 5 else (20, 13))
        assert np.array_equal(shallow.array(), deep.array() // 257)
    assert upscale(['6.png', '-o', 'six.jpg']) == 0
    exif = opened('six.jpg').getexif()
    assert (exif[MAKER], ORIENTATION in exif, exif.get_ifd(DETAILS)[WIDTH]) == ('Maker', False, 26)


def test_transparency_is_interpolated_and_laid_on_white_where_the_format_has_none(desk):
    rgba().save('alpha.png')
    assert upscale(['alpha.png']) == 0
    alpha = torch.from_numpy(np.asarray(rgba())[..., 3].astype(np.float32))[None, None] / 255
    expected = (bicubic_upsample(alpha, 2).clamp(0, 1) * 255).round()[0, 0].numpy()
    assert np.array_equal(np.asarray(opened('alpha_x2.png'))[..., 3], expected)
    hidden = picture()
    hidden.putalpha(0)
    hidden.save('hidden.png')
    assert upscale(['hidden.png', '-o', 'hidden.jpg']) == 0
    middle = np.asarray(opened('hidden.jpg'))[10:-10, 10:-10]  # random weights change the borders
    white = load_model('fsrcnn_x2').upscale(np.full((13, 20, 3), 255, np.uint8))[10:-10, 10:-10]
    assert np.abs(middle.astype(int) - white).max() <= 3


@pytest.mark.parametrize('name, channels', [('a.png', 3), ('a.png', 1), ('a.png', 4), ('a.tiff', 3), ('a.tif', 1)])
def test_16_bits_stay_where_the_format_holds_them(desk, name, channels):
    deep = smooth(channels=channels).astype(np.uint16) * 200 + 77
    cv2.imwrite(name, deep[..., ::-1] if channels == 3 else deep)
    assert upscale([name, '--format', 'same', '-o', 'out']) == 0
    [result] = Path('out').iterdir()
    found = cv2.imread(str(result), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16 and found.shape[:2] == (26, 40) and len(np.unique(found)) > 256
    expected = load_model('fsrcnn_x2').upscale(read_photo(Path(name)).array())
    assert np.array_equal(read_photo(result).array(), expected)
    assert upscale([name, '--format', 'webp', '-o', 'out']) == 0
    eight = np.asarray(opened(Path('out', 'a_x2.webp')).convert('RGB')).astype(int)[..., :1]
    reference = (expected.reshape(26, 40, -1) / 257)[..., :1]
    assert np.abs(eight - reference).mean() < 12  # 8 bits, and what WebP loses


def test_colours_for_print_are_converted_by_their_profile(desk, monkeypatch):
    """No CMYK profile may be shipped with the tests, so the conversion itself is replaced."""
    picture('CMYK').save('print.jpg', icc_profile=b'the profile')
    assert upscale(['print.jpg', '-o', 'damaged.png']) == 0  # a damaged profile counts as none

    class Transform:
        def __init__(self, profile, to, *modes):
            assert (profile.read(), modes) == (b'the profile', ('CMYK', 'RGB'))

        def apply(self, image):
            assert image.mode == 'CMYK'
            return Image.new('RGB', image.size, (10, 200, 30))

    monkeypatch.setattr(ImageCms, 'buildTransform', Transform)
    assert upscale(['print.jpg', '-o', 'good.png']) == 0
    expected = load_model('fsrcnn_x2').upscale(np.full((13, 20, 3), (10, 200, 30), np.uint8))
    assert np.array_equal(np.asarray(opened('good.png')), expected)
    assert not np.array_equal(np.asarray(opened('damaged.png')), expected)
    assert 'icc_profile' not in opened('good.png').info and 'icc_profile' not in opened('damaged.png').info


def test_a_folder_keeps_its_subfolders(desk, capsys):
    Path('holiday/sea side/.hidden').mkdir(parents=True)
    for name in ('a.png', 'sea side/b.jpg', 'sea side/.hidden/c.png', '.d.png'):
        picture().save(Path('holiday', name))
    Path('holiday/notes.txt').write_text('no photo')
    assert upscale(['holiday']) == 0
    assert files('holiday_x2') == ['a_x2.png', 'sea side/b_x2.png']
    assert upscale(['holiday', '-o', 'holiday/larger']) == 0
    assert upscale(['holiday', '-o', 'holiday/larger']) == 0  # does not take its own results for photos
    assert files('holiday/larger') == ['a_x2.png', 'sea side/b_x2.png']
    assert '2 results exist, so they were skipped' in capsys.readouterr().out
    assert upscale(['holiday/sea side', '-o', '.']) == 0  # a folder above the photos'
    assert Path('b_x2.png').is_file()
    assert upscale(['.', '-o', '../all', '--format', 'same']) == 0
    assert 'holiday/sea side/b_x2.jpg' in files('../all')


def test_results_have_the_names_that_the_suffix_makes(desk, capsys):
    Path('holiday').mkdir()
    picture().save('holiday/a.png')
    assert upscale(['holiday', '-o', 'large', '--suffix', '']) == 0
    assert upscale(['holiday', '-o', 'large', '--suffix', '_up']) == 0
    assert files('large') == ['a.png', 'a_up.png'] and opened('large/a.png').size == (40, 26)
    assert upscale(['holiday/a.png', '--suffix', '', '--overwrite']) == 2
    assert 'would take the place of a photo' in capsys.readouterr().err
    assert upscale(['holiday/a.png', '--suffix', '/../b']) == 2
    assert upscale(['holiday/a.png', '-o', 'b.png', '--suffix', '_up']) == 2
    assert files('holiday') == ['a.png'] and not Path('b.png').exists()


def test_results_that_exist_are_replaced_on_request_only(desk, capsys):
    picture().save('a.png')
    Path('a_x2.png').write_text('mine')
    assert upscale(['a.png']) == 0
    assert 'a_x2.png exists, so it was skipped. --overwrite' in capsys.readouterr().out
    assert Path('a_x2.png').read_text() == 'mine'
    assert upscale(['a.png', '--overwrite']) == 0
    assert opened('a_x2.png').size == (40, 26)


def test_a_broken_photo_does_not_stop_the_others(desk, capsys):
    Path('folder').mkdir()
    picture().save('folder/b.png')
    whole = Path('folder/b.png').read_bytes()
    Path('folder/a.png').write_bytes(whole[: len(whole) // 2])
    Path('folder/c.png').write_text('%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    assert upscale(['folder']) == 1
    out, error = capsys.readouterr()
    assert '1 of 3 photos upscaled. These failed:\n  folder/a.png\n  folder/c.png' in out
    assert 'failed: folder/a.png: ' in error and 'failed: folder/c.png: not an image' in error
    assert files('folder_x2') == ['b_x2.png']


@pytest.mark.parametrize('form', ['png', 'jpg', 'tiff'])
def test_a_full_disk_is_one_message_and_no_half_file(desk, capsys, form):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save('a.png')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        assert upscale(['a.png', '--format', form]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(rf'error: a_x2.{form}: .+\n', capsys.readouterr().err)
    assert files() == ['a.png']


def test_ctrl_c_leaves_whole_files_only(desk, monkeypatch):
    for name in ('a.png', 'b.png'):
        picture().save(name)
    parts = iter([None, KeyboardInterrupt])

    def write(self, *args, original=Image.Image.save, **options):
        original(self, *args, **options)
        if error := next(parts):
            raise error

    monkeypatch.setattr(Image.Image, 'save', write)
    assert upscale(['a.png', 'b.png']) == 130
    assert files() == ['a.png', 'a_x2.png', 'b.png']


def test_formats_and_quality(desk):
    picture().save('a.jpg')
    sizes = []
    for quality in ('30', '95'):
        assert upscale(['a.jpg', '--format', 'jpg', '--quality', quality, '--overwrite']) == 0
        sizes.append(Path('a_x2.jpg').stat().st_size)
    assert sizes[0] < sizes[1]
    assert upscale(['a.jpg', '-o', 'big.WEBP']) == 0
    assert opened('big.WEBP').format == 'WEBP'


def test_a_format_that_is_too_small_says_so(desk, capsys):
    Image.new('L', (8192, 2)).save('wide.png')
    assert upscale(['wide.png', '--format', 'webp']) == 2
    assert 'wide.png: too large for WEBP (found 16384x4' in capsys.readouterr().err
    assert files() == ['wide.png']


class Exact(torch.nn.Module):
    """Computes a network in double precision. In single precision its rounding depends on a tile's size."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x):
        return self.net(x.double())


NETWORKS = [
    (FSRCNN, 'y', 2),
    (FSRCNN, 'y', 3),
    (FSRCNN, 'y', 4),
    (EDSR, 'rgb', 2),
    (EDSR, 'rgb', 3),
    (SWINIR, 'rgb', 2),
]


@pytest.mark.parametrize('options, color, scale', NETWORKS)
def test_tiles_give_the_same_pixels(options, color, scale, tmp_path, monkeypatch):
    save_model(tmp_path, 'net', options, scale, color)
    model = load_model(tmp_path / 'net.pth')
    pixels = np.random.default_rng(0).integers(0, 256, (111, 151, 4), dtype=np.uint8)
    single = model.upscale(pixels)
    model.net = Exact(model.net)
    whole = model.upscale(pixels)
    assert np.abs(single.astype(int) - whole).max() <= 1 and (single != whole).mean() < 1e-3
    monkeypatch.setattr(tiles, 'SIDE', 24)
    parts = tiles.split(model, 111, 151)
    assert len(parts) > 4 and len({part.columns for part in parts}) > 1
    assert np.array_equal(model.upscale(pixels), whole)
    strips = np.zeros_like(whole)
    for part in tiles.split(model, 111, 151, strips=7):
        strips[part.place(scale)] = tiles.upscale_tile(model, pixels[part.context], part)
    assert np.array_equal(strips, whole)
    images = torch.from_numpy(pixels[..., :3]).permute(2, 0, 1) / 255
    tensor = model.upscale(torch.stack((images, images.flip(-1))))
    assert tensor.shape == (2, 3, 111 * scale, 151 * scale) and tensor.dtype == torch.float32
    assert np.abs(tensor[0].permute(1, 2, 0).numpy() * 255 - whole[..., :3]).max() < 0.5001


def test_strips_and_tiles_on_the_command_line_differ_by_a_level_at_most(desk, monkeypatch):
    Image.fromarray(smooth(99, 133)).save('a.png')
    assert upscale(['a.png', '-o', 'whole.png']) == 0
    assert upscale(['a.png', '-o', 'strips.png', '--strips', '7']) == 0
    monkeypatch.setattr(tiles, 'SIDE', 24)
    assert upscale(['a.png', '-o', 'tiles.png']) == 0
    whole, *others = (np.asarray(opened(f'{name}.png')).astype(int) for name in ('whole', 'strips', 'tiles'))
    for other in others:
        assert np.abs(whole - other).max() <= 1 and (whole != other).mean() < 1e-3


def test_a_tile_is_small_however_large_the_photo_is(desk):
    parts = tiles.split(load_model('fsrcnn_x2'), 8400, 12000)
    assert sum(len(part.rows) * len(part.columns) for part in parts) == 8400 * 12000
    context = [[cut.stop - cut.start for cut in part.context] for part in parts]
    assert max(height * width for height, width in context) < 600**2


def test_a_network_that_needs_the_whole_photo_says_so(desk, capsys, monkeypatch):
    monkeypatch.setattr(command, 'LARGE', 100)
    monkeypatch.setattr(tiles, 'SIDE', 8)
    picture().save('a.png')
    assert upscale(['a.png', '--model', 'rfdn_s_x2']) == 0
    assert 'a.png: the output of rfdn_s_x2 depends on the whole image' in capsys.readouterr().err
    assert upscale(['a.png', '--model', 'rfdn_s_x2', '--strips', '8', '--overwrite']) == 2
    assert 'strips: the output of RFDN depends on the whole image' in capsys.readouterr().err


def test_a_network_is_named_by_name_file_run_folder_or_recipe(workspace, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    picture().save('a.png')
    run = desk / 'experiments/run/student/models'
    run.mkdir(parents=True)
    save_model(run, 'net_g_latest', FSRCNN, 2, 'y')
    names = [['--model', 'fsrcnn_x2'], ['--model', str(run / 'net_g_latest.pth')], ['--model', 'experiments/run']]
    names.append(
        ['--type', 'FSRCNN', '--arg', 'upscale=2', 'd=8', 's=4', 'm=1', '--weights', f'{run}/net_g_latest.pth']
    )
    for i, name in enumerate(names):
        assert upscale(['a.png', *name, '-o', f'{i}.png']) == 0, capsys.readouterr().err
        assert np.array_equal(np.asarray(opened(f'{i}.png')), np.asarray(opened('0.png')))


def test_the_recipe_says_which_network(workspace, capsys):
    recipe = str(workspace.recipe('baseline'))
    photo = 'datasets/test/LR_bicubic/X2/0.png'
    for flag in ('-opt', '--model'):
        assert upscale([photo, flag, recipe, '-o', 'out']) == 2
        assert 'net_g_latest.pth does not exist. Train first' in capsys.readouterr().err
    torch.save(build_network({**FSRCNN, 'upscale': 2}).state_dict(), 'net.pth')
    assert upscale([photo, '-opt', recipe, '--weights', 'net.pth', '-o', 'out']) == 0
    assert opened('out/0_x2.png').size == (60, 48)
    assert upscale([photo, '-opt', recipe, '--weights', 'net.pth', '--scale', '3', '-o', 'out']) == 2
    assert '--scale 3: the network is for another scale. Expected 2.' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.png'], 'missing.png: no such file'),
        (['words.jpg'], 'words.jpg: not an image'),
        (['empty'], 'empty: no photos. Expected files that end in .png'),
        (['a.png', 'a.jpg', '-o', 'out'], 'both would become out/a_x2.png. Expected --format same'),
        (['a.png', '-o', 'a.png', '--overwrite'], 'a.png would take the place of a photo'),
        (['a.png', 'a.jpg', '-o', 'out.png'], '-o out.png: names a file, for one photo'),
        (['.', '-o', '.'], '-o .: is the folder of the photos'),
        (['a.png', '-o', 'out.png', '--format', 'jpg'], '-o out.png: another format than --format jpg'),
        (['a.png', '--scale', '7'], '--scale 7: no model for this scale comes with the package'),
        (['a.png', '--model', 'fsrcnn_x5'], "fsrcnn_x5: no such model, file or folder. Did you mean 'fsrcnn_x"),
        (['a.png', '--model', 'fsrcnn_x2', '--scale', '3'], 'a model for x2'),
        (['a.png', '--model', 'words.jpg'], 'words.jpg'),
        (['a.png', '--model', 'fast/pisr_fsrcnn_x2'], 'net_g_latest.pth does not exist. Train first'),
        (['a.png', '--model', 'fsrcnn_x2', '--type', 'FSRCNN'], '--model and --type: two ways'),
        (['a.png', '--weights', 'net.pth'], '--model FILE'),
        (['a.png', '--arg', 'upscale=2'], '--arg belongs to --type'),
        (['a.png', '--type', 'FSRCNN', '--arg', 'upscale=2'], 'name its checkpoint'),
        (['a.png', '--type', 'FSRCN', '--arg', 'upscale=2', '--weights', 'net.pth'], "Did you mean 'FSRCNN'"),
        (['a.png', '--strips', '0'], '--strips 0'),
        (['a.png', '--quality', '0'], '--quality 0'),
    ],
)
def test_mistakes_are_said_before_anything_is_written(desk, capsys, arguments, message):
    picture().save('a.png')
    picture().save('a.jpg')
    Path('words.jpg').write_text('no photo')
    Path('empty').mkdir()
    before = {path: path.stat().st_mtime_ns for path in desk.rglob('*')}
    assert upscale(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert {path: path.stat().st_mtime_ns for path in desk.rglob('*')} == before


def test_python_gives_the_pixels_of_the_command(desk):
    picture().save('a.png')
    assert upscale(['a.png']) == 0
    expected = np.asarray(opened('a_x2.png'))
    model = load_model('fsrcnn_x2')
    assert np.array_equal(model.upscale('a.png'), expected)
    assert np.array_equal(model.upscale(np.asarray(picture())), expected)
    tensor = torch.from_numpy(smooth()).permute(2, 0, 1).double() / 255
    sr = model.upscale(tensor)
    assert sr.dtype == torch.float64 and sr.shape == (3, 26, 40) and 0 <= sr.min() and sr.max() <= 1
    assert np.array_equal((sr * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    gray = smooth(channels=1)[..., 0]
    assert model.upscale(gray).shape == (26, 40)
    for wrong in (
        gray.astype(float),
        np.zeros((2, 2, 5), np.uint8),
        torch.zeros(2, 1, 4, 4),
        torch.zeros(3, 4, 4).int(),
    ):
        with pytest.raises(ValueError, match='Expected'):
            model.upscale(wrong)


def test_a_network_of_another_scale_than_it_says_is_refused():
    model = ModelDescriptor('Wrong', build_network({**FSRCNN, 'upscale': 2}).eval(), 1, 3)
    with pytest.raises(OptionsError, match='Wrong: enlarges by 2. Expected 3'):
        model.upscale(smooth())


def save_turned(name: str, orientation: int, mode: str) -> None:
    """Writes a photo that is turned; its sides are larger than a tile."""
    image = Image.fromarray(smooth(90, 70))
    if mode == 'P':
        image = image.quantize(64)
    image.convert(mode).save(name, exif=noted(orientation))


@pytest.mark.parametrize(
    'name, mode', [('a.jpg', 'RGB'), ('a.jpg', 'L'), ('a.jpg', 'CMYK'), ('a.png', 'P'), ('a.tif', 'RGB')]
)
def test_a_part_of_a_turned_photo_is_that_part_of_the_upright_photo(desk, name, mode):
    for orientation in range(1, 9):
        save_turned(name, orientation, mode)
        upright = opened(name)
        if name != 'a.tif':  # which Pillow itself turns
            upright = ImageOps.exif_transpose(upright)
        expected = np.asarray(upright.convert('L' if mode == 'L' else 'RGB')).reshape(upright.height, upright.width, -1)
        photo = read_photo(Path(name))
        assert photo.size == (upright.height, upright.width)
        for part in ((slice(0, 99), slice(0, 99)), (slice(3, 20), slice(11, 99)), (slice(50, 60), slice(0, 7))):
            assert np.array_equal(photo[part], expected[part]), (orientation, part)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('form', ['png', 'tiff', 'jpg'])
def test_a_result_that_is_written_in_pieces_is_the_whole_one(desk, form, channels):
    """150 rows are three pieces; the bands end elsewhere."""
    pixels = smooth(150, 77, channels)
    mode = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}[channels]
    if form == 'jpg' and channels in (2, 4):
        pytest.skip('a JPEG has no transparency')
    whole = Image.fromarray(pixels.squeeze())
    whole.save('a.png', exif=noted(1), icc_profile=SRGB if channels > 2 else None)
    photo = read_photo(Path('a.png'))
    for cuts in ([], [1, 2, 40, 64, 65, 149], range(1, 150)):
        write_photo(Path(f'b.{form}'), np.split(pixels, cuts), photo, 1, FORMATS[form])
        expected = pixels.squeeze()
        if form == 'jpg':
            whole.save('expected.jpg', quality=95, subsampling='4:4:4')
            expected = np.asarray(opened('expected.jpg'))
        result = opened(f'b.{form}')
        assert result.mode == mode and np.array_equal(np.asarray(result), expected)
        assert np.array_equal(cv2.imread(f'b.{form}', cv2.IMREAD_UNCHANGED).shape[:2], (150, 77))
        assert result.getexif()[MAKER] == 'Maker' and result.info.get('icc_profile') == (SRGB if channels > 2 else None)


def test_a_tiff_keeps_the_main_notes(desk):
    exif = noted(1)
    exif.update({0x010E: 'the sea', 0x013B: 'Ann', 0x8298: 'free', 0x011A: 300.0, 0x011B: 150.0, 0x0128: 3})
    exif.update({0x0131: 'Camera 1.0', 0x0132: '2026:01:02 03:04:05'})
    picture().save('a.jpg', exif=exif)
    assert upscale(['a.jpg', '-o', 'b.tiff']) == 0
    result = opened('b.tiff').getexif()
    assert {tag: result.get(tag) for tag in exif if tag not in (ORIENTATION, DETAILS)} == {
        tag: value for tag, value in exif.items() if tag not in (ORIENTATION, DETAILS)
    }


@pytest.mark.parametrize('notes', [{0x0128: 99}, {0x011A: (1, 2)}, {0x011B: IFDRational(1, 0)}, {0x0132: 7}])
def test_damaged_notes_are_no_reason_to_fail(desk, notes):
    exif = Image.Exif()
    exif.update({0x011A: 72.0, 0x011B: 72.0, **notes})
    picture().save('a.jpg', exif=exif)
    assert upscale(['a.jpg', '-o', 'b.tiff']) == 0
    opened('b.tiff').load()


@pytest.mark.parametrize('form', ['png', 'jpg', 'tiff', 'webp'])
@pytest.mark.parametrize('error, code', [(KeyboardInterrupt(), 130), (MemoryError('no more'), 2)])
def test_what_goes_wrong_between_two_bands_leaves_no_half_file(desk, monkeypatch, capsys, form, error, code):
    Image.fromarray(smooth(200, 20)).save('a.png')
    calls = iter([None, None, None, error])

    def upscale_tile(*args, original=tiles.upscale_tile):
        if raised := next(calls):
            raise raised
        return original(*args)

    monkeypatch.setattr(tiles, 'upscale_tile', upscale_tile)
    assert upscale(['a.png', '--format', form, '--strips', '40']) == code
    assert files() == ['a.png']
    if code == 2:
        assert capsys.readouterr().err == 'error: a.png: too large for the memory (no more)\n'


def test_a_truncated_photo_is_refused(desk, capsys):
    Image.fromarray(smooth(200, 200)).save('a.jpg')
    Path('a.jpg').write_bytes(Path('a.jpg').read_bytes()[:-500])
    assert upscale(['a.jpg']) == 2
    assert re.fullmatch(r'error: a.jpg: .*truncated.*\n', capsys.readouterr().err)
    assert files() == ['a.jpg']


def test_memory_does_not_hold_the_result(desk):
    Image.new('RGB', (100, 25)).save('a.png')
    photo = read_photo(Path('a.png'))
    for form in ('png', 'jpg', 'tiff'):
        bands = (np.zeros((60, 12000, 3), np.uint8) for _ in range(50))
        tracemalloc.start()
        write_photo(Path(f'a.{form}'), bands, photo, 120, FORMATS[form])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40e6, form  # bytes; the result has 108e6
