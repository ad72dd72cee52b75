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
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'pisr_command.py'):
        shutil.copy(ROOT / name, source)
    pip('wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', source / 'dist', source)
    (file,) = (source / 'dist').glob('*.whl')
    return file


def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in (ROOT / 'pisr_plugin').rglob('*') if path.is_file() and '__pycache__' not in path.parts}
    assert 'pisr_plugin/py.typed' in packed
    assert {str(path.relative_to(ROOT)) for path in files} <= packed


def test_an_installed_command_starts_elsewhere(wheel, tmp_path):
    installed = tmp_path / 'installed'
    pip('install', '--no-deps', '--no-index', '--target', installed, wheel)
    code = (
        'import runpy, sys; sys.argv[:] = sys.argv[1:]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'finally: print(sys.modules["pisr_plugin"].__file__)'
    )
    command = start_fresh('-c', code, installed / 'bin/pisr-list', 'networks', cwd=tmp_path, PYTHONPATH=installed)
    (told,) = outputs([command])
    assert command.returncode == 0 and 'FSRCNN' in told, told
    assert told.splitlines()[-1] == str(installed / 'pisr_plugin/__init__.py')
