"""A folder that upscales photos in the browser, from any file server: networks as ONNX, onnxruntime-web, a page."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pisr_plugin.inference.card import Card
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.utils.errors import DataError, InstallError, OptionsError, first_line
from pisr_plugin.utils.files import write_whole

PAGE = Path(__file__).parent / 'web'
SHARED = ('style.css', 'theme.js', 'compare.js')  # with the report
REPORT = Path(__file__).parents[1] / 'report' / 'static'
RUNTIME = 'onnxruntime-web@1.30.0'
RUNTIME_SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
RUNTIME_FILES = ('ort.webgpu.bundle.min.mjs', 'ort-wasm-simd-threaded.asyncify.wasm')
LIST = 'models.json'


def check_folder(folder: Path) -> None:
    """Makes sure that a folder is missing, empty, or holds an earlier page.

    Raises:
        OptionsError: it holds something else.
    """
    if folder.exists() and not (folder / LIST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionsError(f'--web {folder}: holds other files. Expected a new or empty folder, or an earlier page.')


def describe(model: ModelDescriptor, card: Card, name: str, file: str) -> dict[str, Any]:
    """Returns what the page must know of a model.

    Args:
        model: The network, on the CPU.
        card: Its card.
        name: Its name, by which the page tells models apart.
        file: Its ONNX file within the page's folder.
    """
    return {
        'name': name,
        'file': file,
        'scale': card.scale,
        'color': card.color,
        'window': model.window,
        'pad': model.tile_pad,
    }


def write_page(folder: Path, exported: Mapping[str, Path], models: list[dict[str, Any]], runtime: Path | None) -> None:
    """Writes the page's folder.

    Args:
        folder: The folder; files of an earlier page are replaced.
        exported: By their name within the folder the ONNX files to move there.
        models: What :func:`describe` returns of each.
        runtime: Folder with onnxruntime-web's files; None: npm fetches them.

    Raises:
        InstallError: npm is missing, fails, or brings another file than the pinned one.
        DataError: ``runtime`` lacks a file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.web_', dir=folder.parent) as temporary:
        page = Path(temporary) / 'page'
        shutil.copytree(PAGE, page)
        for name in SHARED:
            shutil.copy(REPORT / name, page)
        (page / 'ort').mkdir()
        _copy_runtime(runtime or _fetch_runtime(Path(temporary)), page / 'ort')
        for name, path in exported.items():
            (page / name).parent.mkdir(exist_ok=True)
            shutil.move(path, page / name)
        write_whole(page / LIST, json.dumps(models, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        page.rename(folder)


def _copy_runtime(source: Path, target: Path) -> None:
    for name in RUNTIME_FILES:
        found = next((path for path in (source / name, source / 'dist' / name) if path.is_file()), None)
        if found is None:
            raise DataError(f'--ort {source}: {name} is missing. Expected the files of {RUNTIME}.')
        shutil.copy(found, target)


def _fetch_runtime(folder: Path) -> Path:
    """Downloads the pinned package by npm and compares its checksum; returns the folder of its files."""
    command = ['npm', 'pack', RUNTIME, '--silent', '--pack-destination', str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    except FileNotFoundError:
        raise InstallError(
            f'--web needs npm (of Node.js), which fetches {RUNTIME}. Without it, unpack this package elsewhere, and '
            'name its folder: --ort FOLDER'
        ) from None
    except subprocess.CalledProcessError as error:
        raise InstallError(f'npm cannot fetch {RUNTIME}: {first_line(ValueError(error.stderr))}') from None
    [archive] = folder.glob('*.tgz')
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != RUNTIME_SHA512:
        raise InstallError(f'npm brought another file than the {RUNTIME} that this page was made for.')
    with tarfile.open(archive) as packed:
        for name in RUNTIME_FILES:
            member = packed.extractfile(f'package/dist/{name}')
            assert member is not None  # the checksum is right
            (folder / name).write_bytes(member.read())
    return folder
