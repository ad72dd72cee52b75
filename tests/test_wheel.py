"""What `pip install` brings: a wheel with all files, which works without this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tests.processes import outputs, start_fresh


def pip(*arguments: object) -> None:
    command = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves files beside its source."""
    source = tmp_path_factory.mktemp('source')
    shutil.copytree(ROOT / 'pisr_plugin', source / 'pisr_plugin', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'options', source / 'options')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'pisr_command.py'):
        shutil.copy(ROOT / name, source)
    pip('wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', source / 'dist', source)
    (file,) = (source / 'dist').glob('*.whl')
    return file


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp('installed')
    pip('install', '--no-deps', '--no-index', '--target', folder, wheel)
    return folder


def run(installed, folder, command, *arguments) -> str:
    """Runs an installed command in ``folder``; returns what it printed."""
    code = (
        'import runpy, sys; sys.argv[:] = sys.argv[1:]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'finally: print(sys.modules["pisr_plugin"].__file__)'
    )
    process = start_fresh('-c', code, installed / 'bin' / command, *arguments, cwd=folder, PYTHONPATH=installed)
    (printed,) = outputs([process])
    *lines, file = printed.splitlines()
    assert process.returncode == 0 and file == str(installed / 'pisr_plugin/__init__.py'), printed
    return '\n'.join(lines)


def test_the_wheel_holds_every_file_of_the_package_and_every_recipe(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in (ROOT / 'pisr_plugin').rglob('*') if path.is_file() and '__pycache__' not in path.parts}
    recipes = {f'pisr_plugin/{path.relative_to(ROOT)}' for path in (ROOT / 'options').rglob('*') if path.is_file()}
    assert 'pisr_plugin/py.typed' in packed and 'pisr_plugin/options/demo/pisr_fsrcnn_x2.yml' in recipes
    assert {str(path.relative_to(ROOT)) for path in files} | recipes <= packed


def test_the_demo_is_trained_by_name_elsewhere(installed, tmp_path):
    assert 'demo/pisr_fsrcnn_x2 ' in run(installed, tmp_path, 'pisr-list', 'recipes')
    run(installed, tmp_path, 'pisr-prepare-data', 'demo')
    short = ['train:total_iter=2', 'logger:print_freq=1', 'val:val_freq=2', 'num_gpu=0']
    run(installed, tmp_path, 'pisr-train', '-opt', 'demo/pisr_fsrcnn_x2', '--force_yml', *short)
    assert (tmp_path / 'experiments/demo_pisr_fsrcnn_x2/student/models/net_g_latest.pth').is_file()
