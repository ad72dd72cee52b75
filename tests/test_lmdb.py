"""Shared LMDB handles, in processes of their own: a wrong one ends in a signal, not in an exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# the module alone, to see that it needs neither torch nor BasicSR
START = f"""
import os, shutil, sys, types
package = types.ModuleType('pisr_plugin')
package.__path__ = [{str(ROOT / 'pisr_plugin')!r}]
sys.modules['pisr_plugin'] = package
data = types.ModuleType('pisr_plugin.data')
data.__path__ = [{str(ROOT / 'pisr_plugin' / 'data')!r}]
sys.modules['pisr_plugin.data'] = data
import lmdb
from pisr_plugin.data.storage import lmdb_env as module
from pisr_plugin.data.storage.lmdb_env import SharedLmdbBackend, close_lmdb, open_lmdb, read_keys, read_value
from pisr_plugin.utils.errors import DataError

def make(name, value=b'value'):
    with lmdb.open(name, map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for i in range(20):
            transaction.put(str(i).encode(), value * 2000)

def read(env):
    with env.begin() as transaction:
        return transaction.get(b'7')

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(code: str, cwd: Path) -> str:
    """Runs code that must succeed; returns what it printed."""
    done = subprocess.run([sys.executable, '-c', START + code], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_file_is_opened_once_whatever_it_is_called(tmp_path: Path) -> None:
    run(
        """
from pathlib import Path
make('a.lmdb'), make('b.lmdb')
os.symlink('a.lmdb', 'link.lmdb')
a = open_lmdb('a.lmdb')
assert open_lmdb(Path('a.lmdb')) is a and open_lmdb('link.lmdb') is a and open_lmdb(os.path.abspath('a.lmdb')) is a
assert open_lmdb('b.lmdb') is not a
flags = a.flags()
assert flags['readonly'] and not flags['lock'] and not flags['readahead'] and not flags['meminit']
assert 'torch' not in sys.modules and 'basicsr' not in sys.modules
""",
        tmp_path,
    )


def test_a_closed_file_can_be_written_and_opened_again(tmp_path: Path) -> None:
    run(
        """
make('a.lmdb', b'old')
assert read(open_lmdb('a.lmdb')) == b'old' * 2000
close_lmdb('a.lmdb')
close_lmdb('a.lmdb')
make('a.lmdb', b'new')
assert read(open_lmdb('a.lmdb')) == b'new' * 2000
""",
        tmp_path,
    )


def test_a_child_opens_its_own_handle_and_the_parent_keeps_its(tmp_path: Path) -> None:
    run(
        """
make('a.lmdb')
parent = open_lmdb('a.lmdb')

def child():
    own = open_lmdb('a.lmdb')
    assert own is not parent and read(own) == read(open_lmdb('a.lmdb')) == b'value' * 2000
    try:
        read(parent)
    except lmdb.Error:
        in_child(lambda: read(open_lmdb('a.lmdb')))  # and so on
    else:
        raise AssertionError('a handle of the parent was used')

in_child(child)
assert read(parent) == b'value' * 2000 and open_lmdb('a.lmdb') is parent
""",
        tmp_path,
    )


def test_a_child_does_not_wait_for_a_thread_that_only_its_parent_has(tmp_path: Path) -> None:
    run(
        """
make('a.lmdb')
with module._opening:  # as another thread would hold it at this moment
    in_child(lambda: open_lmdb('a.lmdb'))
""",
        tmp_path,
    )


def test_threads_share_a_handle(tmp_path: Path) -> None:
    run(
        """
from concurrent.futures import ThreadPoolExecutor
names = [f'{i}.lmdb' for i in range(8)]
for name in names:
    make(name)
with ThreadPoolExecutor(16) as pool:
    for name in names:
        assert len(set(map(id, pool.map(open_lmdb, [name] * 64)))) == 1
""",
        tmp_path,
    )


def test_damage_is_reported_before_it_kills(tmp_path: Path) -> None:
    out = run(
        """
make('whole.lmdb')
size = os.path.getsize('whole.lmdb/data.mdb')
open_lmdb('whole.lmdb')
damages = {
    'gone': shutil.rmtree,
    'empty folder': lambda path: os.remove(path + '/data.mdb'),
    'not an LMDB': lambda path: open(path + '/data.mdb', 'wb').write(b'something else' * 9999),
    **{f'cut to {n}': lambda path, n=n: os.truncate(path + '/data.mdb', n)
       for n in (0, 100, 4096, 4097, 8192, size // 2, size - 1)},
}
for damage, do in damages.items():
    shutil.copytree('whole.lmdb', 'broken.lmdb', dirs_exist_ok=True)
    do('broken.lmdb')
    for attempt in range(2):  # nothing of a failed attempt stays open
        try:
            open_lmdb('broken.lmdb')
        except DataError as error:
            assert os.path.abspath('broken.lmdb') in str(error)
            print(f'{damage}: {error}')
        else:
            raise AssertionError(damage)
shutil.copytree('whole.lmdb', 'broken.lmdb', dirs_exist_ok=True)
assert read(open_lmdb('broken.lmdb')) == read(open_lmdb('whole.lmdb'))
""",
        tmp_path,
    )
    for damage, reason in [
        ('gone', 'no such LMDB'),
        ('empty folder', 'no data.mdb'),
        ('not an LMDB', 'cannot be opened as an LMDB'),
        ('cut to 0', 'cannot be opened as an LMDB'),
        ('cut to 8192', 'is cut off, it has 8192 of'),
    ]:
        assert sum(line.startswith(damage + ':') and reason in line for line in out.splitlines()) == 2, out
    print(out)


def test_damaged_pages_and_impossible_keys_raise_one_error(tmp_path: Path) -> None:
    out = run(
        """
make('a.lmdb')
content = bytearray(open('a.lmdb/data.mdb', 'rb').read())
told = 0
for page in range(2, len(content) // 4096):
    wrong = bytearray(content)
    wrong[4096 * page + 10 : 4096 * page + 12] = bytes(2)  # the page's kind
    close_lmdb('a.lmdb')
    open('a.lmdb/data.mdb', 'wb').write(wrong)
    for read in (read_keys, lambda path: read_value(path, '7'), SharedLmdbBackend(['a.lmdb'], ['gt']).get):
        try:
            read('a.lmdb') if not hasattr(read, '__self__') else read('7', 'gt')
        except DataError as error:
            assert 'a.lmdb' in str(error)
            told += 1
assert told
close_lmdb('a.lmdb')
open('a.lmdb/data.mdb', 'wb').write(content)
for key in ('', 'caf\\xe9'):
    try:
        read_value('a.lmdb', key)
    except DataError as error:
        print(str(error)[:300])
    else:
        raise AssertionError(key)
""",
        tmp_path,
    )
    assert len(out.splitlines()) == 2
