"""A whole sweep whose store lies on a server that is away again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import NOISE
from harness import Row, Sweep
from test_store import bucket, s3_port  # noqa: F401
from test_store_faults import Proxy

pytestmark = pytest.mark.slow
AWAY_S, BETWEEN_S = 20.0, (4.0, 15.0)
MODES = {"503": "answers 503", "stall": "says nothing (time-outs)", "close": "has vanished"}


@pytest.fixture
def away(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: F811
    """What lies between the sweep and the server."""
    made = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    yield made
    made.set("pass")
    made.listener.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_is_away_during_a_sweep(
    mode: str,
    undisturbed: Mapping[str, Any],
    row: Callable[[str], Row],
    tmp_path: Path,
    generator_folder: Path,
    bucket: str,  # noqa: F811
    away: Proxy,
) -> None:
    """For 20 s, at random moments from its first stage to its end; neither it nor anything of it is started again."""
    line, draw = row(f"S3 server {MODES[mode]} for {AWAY_S:.0f} s"), random.Random(mode)
    sweep = Sweep.make(tmp_path / "sweep", generator_folder, store=f"s3://{bucket}/sweeps")
    process = sweep.start()
    assert process.stdout is not None
    output = process.stdout.readline()  # it has reached its store
    while process.poll() is None:
        away.fail(mode, AWAY_S)
        line.tried += 1
        line.lost_s.append(0.0)
        ends = time.monotonic() + AWAY_S + draw.uniform(*BETWEEN_S)
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.2)
    out, err = process.communicate()
    assert (err, process.returncode) == ("", 0), output + out
    assert not NOISE.search(out), NOISE.findall(out)
    assert away.refused >= line.tried, "each was noticed"
    assert sweep.outcome() == undisturbed
    line.is_equal = True
