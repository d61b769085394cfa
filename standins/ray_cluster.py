"""A Ray cluster of several nodes on this machine, with its token, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]

START_SECONDS = 180


class RayCluster:
    """Nodes started with `ray start`; a context manager that ends them all.

    Args:
        cpus: of each node; the first is the head.
        object_store_mb: of each node.
    """

    def __init__(self, cpus: tuple[int, ...], object_store_mb: int):
        # Short: the path of a Unix socket in it has 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        token = self._folder / "token"
        token.write_text(secrets.token_hex(32))
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # By default workers give way to whatever else runs here, and a task's process that was idle for a
            # second ends where there are more processes than CPUs; the next takes seconds to start.
            "RAY_worker_niceness": "0",
            "RAY_idle_worker_killing_time_threshold_ms": "600000",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.nodes: list[psutil.Popen] = []
        head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        try:
            for number, count in enumerate(cpus):
                words = (
                    [*head, f"--temp-dir={self._folder}"] if number == 0 else [f"--address={self.address}"]
                )
                self._start([*words, f"--num-cpus={count}", f"--object-store-memory={object_store_mb << 20}"])
                self._wait_for(number + 1)
        except BaseException:
            self.close()
            raise

    def _start(self, words: list[str]) -> None:
        ray = Path(sys.executable).with_name("ray")
        with (self._folder / f"node-{len(self.nodes)}.log").open("w") as log:
            command = [str(ray), "start", "--block", *words]
            self.nodes.append(
                psutil.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self._folder)
            )

    def _wait_for(self, nodes: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._alive() < nodes:
            log = (self._folder / f"node-{len(self.nodes) - 1}.log").read_text()
            assert self.nodes[-1].poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.5)

    def _alive(self) -> int:
        """How many raylets answer; asked in a process of its own, so that this one is of no cluster."""
        code = (
            "import sys, ray; from ray._raylet import GcsClient; "
            "print(sum(n.state == 0 for n in GcsClient(sys.argv[1]).get_all_node_info().values()))"
        )
        asked = subprocess.run(
            [sys.executable, "-c", code, self.address], env=self.environment, capture_output=True, text=True
        )
        return int(asked.stdout) if asked.returncode == 0 else 0

    def kill_node(self, number: int) -> None:
        """Ends a node as a power cut would: everything of it at once."""
        processes = [*self.nodes[number].children(recursive=True), self.nodes[number]]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 30)
        self.nodes[number].wait()

    def processes(self) -> list[psutil.Process]:
        """Every process of every node."""
        found = []
        for node in self.nodes:
            try:
                found += [node, *node.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def spilled(self) -> list[Path]:
        """Files in which nodes keep what their object store had no room for."""
        return [path for path in self._folder.glob("session_[0-9]*/ray_spilled_objects*/*") if path.is_file()]

    def close(self) -> None:
        """Ends all nodes."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 30)
        for node in self.nodes:
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
