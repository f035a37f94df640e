"""A command run by itself: what it printed, how long it took, how much memory it had at its peak."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes:
        status: exit code; negative for a signal, None where it ran out of time and was ended.
        output: standard output.
        complaint: the last line of standard error that is not empty.
        seconds: wall clock.
        cpu_seconds: processor time of it and of what it started.
        peak: largest resident memory of any one of its processes, bytes; not less than what this process had
            when it started it, for Linux counts that too.
    """

    status: int | None
    output: str
    complaint: str
    seconds: float
    cpu_seconds: float
    peak: int


def run(command: Sequence[str | Path], *, timeout: float, environment: dict[str, str] | None = None) -> Finished:
    """Run a command to its end, or end it after so many seconds.

    Args:
        command: program and arguments.
        timeout: seconds.
        environment: variables to set beside the present ones.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=err, env={**os.environ, **(environment or {})}
        )
        late = False
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if not late and time.perf_counter() - began > timeout:
                late = True
                process.kill()
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        _, raw, usage = ended
        process.returncode = os.waitstatus_to_exitcode(raw)  # it was waited for here, for its usage
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    complaints = [line for line in texts[1].splitlines() if line.strip()]
    return Finished(
        status=None if late else process.returncode,
        output=texts[0],
        complaint=complaints[-1].strip() if complaints else "",
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss * 1024,
    )
