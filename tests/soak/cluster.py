"""Nodes of the soak programs as processes on this machine; all end with the block, however it ends.

Rules of this file: a node is ended by its own process id only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from examples.kv.cluster import Cluster, NodeProcess


class SoakCluster(Cluster):
    """As `Cluster`, of tests.soak.node."""

    def command(self, node_id: str) -> list[str]:
        words = super().command(node_id)
        options = [word for word in words[words.index("node") + 1 :] if not word.startswith("--resp=")]
        return [sys.executable, "-m", "tests.soak.node", *options]

    def port(self, node_id: str) -> int:
        """Where a node answers questions."""
        return int(self.nodes[node_id].http.rpartition(":")[2])


def memory_mib(node: NodeProcess) -> dict[str, float]:
    """Return what the system says of a node's memory, in MiB: RssAnon, RssFile, VmHWM. Empty where it does not run."""
    if node.process is None or node.process.returncode is not None:
        return {}
    found: dict[str, float] = {}
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found


def cpu_s(node: NodeProcess) -> float:
    """Return the seconds of CPU that a node has used since its start; 0 where it does not run."""
    if node.process is None or node.process.returncode is not None:
        return 0.0
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
