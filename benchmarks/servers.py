"""A server in a round: started, primed, put under the load of each measurement, and stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.load import LoadJob
from benchmarks.peers import HttpPeer
from benchmarks.plan import CAPACITY_CLIENTS, Closed, Measurement, Open
from benchmarks.usage import CpuMeter, Machine, Quiet, resident_megabytes
from benchmarks.workloads import WORKLOADS

WARM_UP_SHARE = 0.3  # of the duration
PRIME_CLIENTS = 8

Figures = dict[str, Any]


class ServerMeter:
    """Measures servers, one after the other.

    Args:
        generator: the child that asks them, `benchmarks.load`.
        folder: for the bodies of requests, which are the same in all rounds.
        seconds: of a measurement.
        quiet: repeats what other programs disturbed.
    """

    def __init__(self, generator: Child, folder: Path, seconds: float, quiet: Quiet):
        self._generator = generator
        self._folder = folder
        self._seconds = seconds
        self._quiet = quiet
        self._bodies: dict[tuple[str, str], list[str]] = {}

    def measure(self, name: str, peer: HttpPeer, plan: Sequence[Measurement]) -> Figures:
        """Starts a server, measures what it serves of a plan, and stops it.

        Args:
            name: of the server in the results.
            peer: the server.
            plan: in this order; an open loop comes after the closed one that tells its capacity.

        Returns:
            `start` in seconds; by the name of a measurement what the generator counted, its `rate` in items a
            second, `cpu_ms_per_item` of the whole server, and `other_cores`, what other programs took;
            `rss_mb`, the most of a worker of each endpoint and of all (`total`); `rss_all_mb`, of an
            endpoint's workers together.

        Raises:
            ClipServeError: it does not run, or answers something else.
        """
        try:
            found: Figures = {"start": peer.start()}
            workers = peer.workers()
            memory: dict[str, float] = {}
            together: dict[str, float] = {}
            primed = set()
            for measurement in plan:
                workload = WORKLOADS[measurement.workload]
                if not peer.serves(workload):
                    continue
                if workload not in primed:
                    # Kernels are chosen and labels remembered before anything is measured.
                    self._load(name, peer, Closed(measurement.workload, PRIME_CLIENTS), found, 0.0)
                    primed.add(workload)
                found[measurement.name] = self._quiet.measure(
                    f"{name}: {measurement.name}",
                    lambda of=measurement: self._load(name, peer, of, found, self._seconds),  # type: ignore[misc]
                )
                for worker, processes in {**workers, "total": peer.processes()}.items():
                    of_each = [resident_megabytes([process]) for process in processes]
                    most = sum(of_each) if worker == "total" else max(of_each, default=0.0)
                    memory[worker] = max(memory.get(worker, 0.0), most)
                    together[worker] = max(together.get(worker, 0.0), sum(of_each))
            return {**found, "rss_mb": memory, "rss_all_mb": together}
        finally:
            peer.stop()

    def _load(
        self, name: str, peer: HttpPeer, measurement: Measurement, before: Figures, seconds: float
    ) -> Figures:
        workload = WORKLOADS[measurement.workload]
        target = peer.target(workload)
        bodies = self._body_files(name, peer, measurement.workload)
        if isinstance(measurement, Closed):
            warm_up = WARM_UP_SHARE * seconds
            job = LoadJob(target.url, target.headers, bodies, seconds, warm_up, measurement.clients)
        else:
            capacity = before[Closed(measurement.workload, CAPACITY_CLIENTS).name]["rate"] / workload.items
            rate = measurement.percent / 100 * capacity
            job = LoadJob(target.url, target.headers, bodies, seconds, rate=rate, seed=measurement.percent)
        meter, machine = CpuMeter(peer.processes), Machine()
        figures = self._generator.ask(asdict(job))
        cpu = meter.seconds()
        # What others did on this machine meanwhile: a measurement that they disturbed can be told.
        figures["other_cores"] = machine.other_cores(cpu + figures.pop("cpu_s"))
        figures["rate"] *= workload.items
        figures["cpu_ms_per_item"] = 1000 * cpu / max(1, figures.pop("answered") * workload.items)
        figures["failed"] = sum(figures["errors"].values())
        if isinstance(measurement, Open):
            figures["offered"] = rate * workload.items
        return figures

    def _body_files(self, name: str, peer: HttpPeer, workload: str) -> list[str]:
        """A peer's request bodies of a workload, written once."""
        if (name, workload) not in self._bodies:
            paths = []
            for number, body in enumerate(peer.bodies(WORKLOADS[workload])):
                path = self._folder / f"{name}-{workload}-{number}"
                path.write_bytes(body)
                paths.append(str(path))
            self._bodies[name, workload] = paths
        return self._bodies[name, workload]
