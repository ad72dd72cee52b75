"""Freed memory stays with the process."""

import platform

import pytest

from tests.processes import outputs, start_fresh

FAULTS = """
import resource, torch
from pisr_plugin.utils.malloc import keep_freed_memory
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
def test_memory_used_again_faults_fewer_pages(tmp_path):
    def faults(keep: bool) -> int:
        return int(*outputs([start_fresh('-c', FAULTS.format(keep=keep), cwd=tmp_path)]))

    assert faults(keep=True) < faults(keep=False) / 2  # not none: an aligned block may not fit where the last lay
