"""What a settled worker gives back: clean pages of files, and nothing that was written to."""

from __future__ import annotations

import mmap
import subprocess
import sys

from agent.worker.memory import clean_mappings

SMAPS = """\
00400000-00500000 r-xp 00000000 08:01 100                                /usr/bin/python3.11
Rss:                 900 kB
Anonymous:             0 kB
00500000-00600000 r--p 00100000 08:01 100                                /usr/bin/python3.11
Anonymous:             8 kB
00600000-00700000 rw-p 00200000 08:01 100                                /usr/bin/python3.11
Anonymous:             0 kB
00700000-00800000 rw-p 00000000 00:00 0                                  [heap]
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 08:01 101                        /usr/lib/a file
Anonymous:             0 kB
7f0000002000-7f0000003000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
7f0000004000-7f0000005000 r--s 00000000 08:01 102                        /usr/lib/shared
Anonymous:             0 kB
"""


def test_only_clean_read_only_private_mappings_of_files_are_given_back() -> None:
    assert list(clean_mappings(SMAPS)) == [(0x400000, 0x500000), (0x7F0000000000, 0x7F0000001000)]


def test_a_process_is_smaller_afterwards_and_goes_on() -> None:
    script = """
import re, sys
sys.path.insert(0, ".")
from agent.worker.memory import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1])
before = resident()
give_back()
print(before - resident())
import json, ssl, decimal
assert json.loads("[1]") == [1] and decimal.Decimal("1.5") * 2 == 3 and ssl.OPENSSL_VERSION
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) * mmap.PAGESIZE > 1_000_000
