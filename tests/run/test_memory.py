"""The memory that a process frees stays with it: a block that is taken again makes no page faults."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import concurrent.futures, resource
from detzoo.run import memory

memory.ACCELERATORS = ()  # the test is not about this machine
memory.keep_memory()

def faults(_):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(0)
with concurrent.futures.ThreadPoolExecutor(1) as thread:
    print(faults(1), *thread.map(faults, [2, 3]))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is the C library of Linux')
@pytest.mark.parametrize('environment', [{}, {'GLIBC_TUNABLES': 'glibc.malloc.mmap_max=65536'}], ids=['ours', 'chosen'])
def test_freed_memory_is_kept_for_all_threads_unless_the_user_has_chosen(environment):
    others = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_TUNABLES'))}
    command = [sys.executable, '-c', PROGRAM]
    faults = subprocess.run(
        command, env=others | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(faults) == 3
    for count in map(int, faults):
        assert count > 20_000 if environment else count < 1000
