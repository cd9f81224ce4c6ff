"""Processes that are measured: started, spoken to in JSON lines, watched from outside, and ended.

What a system costs is read the same way for all of them, from the operating system: CPU time of each process, and how
often the disk was told to flush. A system's own counters come on top where it has them.

Rules of this file: loopback only; every process started here is ended here; a process's complaints go to a file, whose
end is part of the error when it dies.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
_LOW_PORT: Final = 20_000
_HIGH_PORT: Final = 32_000
"""Below those that the system hands out by itself."""
_FLUSHES: Final = 15
"""Which number of a block device's `stat` counts flush requests."""
_UTIME: Final = 11


def free_ranges(ranges: int, length: int) -> list[int]:
    """Return the first ports of so many ranges of consecutive loopback ports that nobody listens on.

    Raises RuntimeError when none is found in a hundred tries.
    """
    for _ in range(100):
        first = random.randrange(_LOW_PORT, _HIGH_PORT - ranges * length)
        taken: list[socket.socket] = []
        try:
            for port in range(first, first + ranges * length):
                one = socket.socket()
                taken.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in taken:
                one.close()
        return [first + number * length for number in range(ranges)]
    raise RuntimeError(f"no {ranges} ranges of {length} free ports were found")


def cpu_s(pid: int) -> float | None:
    """Return the CPU seconds of a process so far, user and system; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / os.sysconf("SC_CLK_TCK")


def disk_flushes(directory: str) -> int | None:
    """Return how many flushes the disk that holds `directory` has done; None where the system does not tell."""
    device = os.stat(directory).st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for place in (link, link.resolve().parent):
        with suppress(OSError):
            fields = (place / "stat").read_text().split()
            if len(fields) > _FLUSHES and (place / "queue").exists():
                return int(fields[_FLUSHES])
    return None


class Process:
    """One process that answers lines of JSON with lines of JSON."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._name = Path(command[0]).name
        self._log = log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """Return the next line. Raises RuntimeError when the process has ended instead."""
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            status = self._process.wait()
            why = self._log.read_text(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError(f"{self._name} ended with status {status}: {' / '.join(why) or 'it did not say why'}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, **wanted: Any) -> dict[str, Any]:
        """Say what is wanted and return the answer. Raises RuntimeError when the process ends instead."""
        pipe = self._process.stdin
        if pipe is None:
            raise RuntimeError("the process has no stdin")
        with suppress(BrokenPipeError):  # it has ended: `hear` says why
            pipe.write(json.dumps(wanted) + "\n")
            pipe.flush()
        return self.hear()

    def let_end(self) -> None:
        """Close its input, at which it ends by itself."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def end(self, patience_s: float = 10.0) -> None:
        """Wait for its end, and bring it about when it takes too long."""
        self.let_end()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
