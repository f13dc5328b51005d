"""A process that hangs is ended, and says where it hung; one that lives or has ended its trial is left alone."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import time
from sweeper.watchdog import Watchdog
watchdog = Watchdog(least_s={least_s})
for _ in range({signs}):
    watchdog.alive()
    time.sleep(0.01)
if {is_off}:
    watchdog.off()
time.sleep({silence_s})
"""


def ended(*, least_s: float, signs: int, is_off: bool, silence_s: float) -> subprocess.CompletedProcess[str]:
    code = HANGS.format(least_s=least_s, signs=signs, is_off=is_off, silence_s=silence_s)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_silence_ends_the_process_and_names_the_place() -> None:
    done = ended(least_s=0.3, signs=3, is_off=False, silence_s=100)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:00.3")
    assert 'File "<string>", line 10 in <module>' in done.stderr


def test_signs_of_life_put_it_off() -> None:
    done = ended(least_s=0.5, signs=100, is_off=True, silence_s=0)  # a second in all
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_expected_before_the_first_sign_and_after_the_end() -> None:
    for signs, is_off in [(0, False), (3, True)]:
        done = ended(least_s=0.2, signs=signs, is_off=is_off, silence_s=0.6)
        assert (done.returncode, done.stderr) == (0, "")
