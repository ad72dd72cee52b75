"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from pisr_plugin.engine.allocator import keep_freed_memory
assert not {keep} or keep_freed_memory()
def use():
    torch.ones(16 << 20)  # 64 MB
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')
def test_memory_used_again_faults_fewer_pages():
    def faults(keep: bool) -> int:
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 2  # not none: an aligned block may not fit where the last lay
