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
use()  # aligned memory may not fit where the first lay
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')
def test_a_second_use_of_the_same_memory_faults_no_pages():
    def faults(keep: bool) -> int:
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < 100 < faults(keep=False)
