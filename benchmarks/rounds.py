"""The rounds: each peer in turn, each measurement once a round."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import transformers
import yaml

from benchmarks.child import Child, ask_together, say
from benchmarks.infinity import InfinityPeer
from benchmarks.load import LoadJob
from benchmarks.ours import RayServePeer, TorchServePeer
from benchmarks.peers import HttpPeer, Inputs
from benchmarks.usage import CpuMeter, resident_megabytes
from benchmarks.workloads import WORKLOADS
from clipserve.errors import ClipServeError

WARM_UP_SHARE = 0.3  # of the duration
PRIME_CLIENTS = 8

MEASURED = "measured"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Closed:
    """A closed loop."""

    workload: str
    clients: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.workload}_c{self.clients}"


@dataclass(frozen=True)
class Open:
    """An open loop at a share of what the closed loop with `CAPACITY_CLIENTS` reached in the same round."""

    workload: str
    percent: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.workload}_open{self.percent}"


Measurement = Closed | Open

CAPACITY_CLIENTS = 32

SMALL_PLAN: tuple[Measurement, ...] = (
    *(Closed("image", clients) for clients in (1, 32)),
    *(Closed("text", clients) for clients in (1, 32)),
    Closed("similarity_1000_known", 1),
)
PLAN: tuple[Measurement, ...] = (
    *(Closed("image", clients) for clients in (1, 8, 32)),
    *(Open("image", percent) for percent in (50, 80, 110)),
    Closed("image_raw", 32),
    Closed("image_2mp", 8),
    Closed("image_12mp", 8),
    *(Closed("text", clients) for clients in (1, 8, 32)),
    *(Open("text", percent) for percent in (50, 80, 110)),
    Closed("text_floats", 32),
    Closed("text_batch32", 8),
    Closed("similarity_fresh", 1),
    Closed("similarity_repeated", 1),
    Closed("similarity_1000_known", 1),
)
# The same core behind another server: only what the server changes.
RAY_PLAN = tuple(m for m in PLAN if isinstance(m, Closed) and m.workload in ("image", "text", "text_batch32"))


class Rounds:
    """The children that measure, and the servers that are measured.

    Args:
        store: our archives and encoders.
        clip, text: the checkpoint folders that they were made of.
        pictures: JPEG files by size.
        workers: of our endpoints, where not what their archives say.
        seconds: of a measurement.
        small: ours and sentence-transformers only.

    Attributes:
        notes: of each peer `MEASURED`, or why it was not.
        encoders: ours, by modality.
        openvino: how it is run.

    Raises:
        PeerError: sentence-transformers or our encoders do not run.
    """

    def __init__(
        self,
        store: Path,
        clip: Path,
        text: Path,
        pictures: Mapping[str, Sequence[Path]],
        workers: Mapping[str, int],
        seconds: float,
        *,
        small: bool,
    ):
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="clipserve-bench-")
        self._bodies: dict[tuple[str, str], list[str]] = {}
        self._children: list[Child] = []
        self.notes: dict[str, str] = {}
        self.openvino: Figures = {}
        cores = psutil.cpu_count() or 1
        given = {
            "clip": str(clip),
            "text": str(text),
            "pictures": {key: [str(path) for path in paths] for key, paths in pictures.items()},
        }
        try:
            say("loading what runs in process")
            self._generator = self._child("benchmarks.load", 1)
            self._originals = self._child("benchmarks.in_process", cores)
            originals = self._originals.ask({"load": "sentence-transformers", **given})
            threads = archive_settings(store / "clip_image.mar")["handler"]["threads"]
            floors = {"store": str(store), **given, **image_encoder_shapes(clip), "threads": threads}
            self._floors = [self._child("benchmarks.floors", 1) for _ in range(cores)]
            self.encoders = ask_together(self._floors, floors)[0]
            inputs = Inputs(pictures, clip, text, store, np.array(originals["reference"], np.float32))
            plan = SMALL_PLAN if small else PLAN
            self._peers: dict[str, tuple[HttpPeer, Sequence[Measurement]]] = {
                "clipserve": (TorchServePeer(inputs, workers), plan)
            }
            self._openvino: Child | None = None
            if not small:
                self._peers["infinity"] = (InfinityPeer(inputs), plan)
                self._peers["ray_serve"] = (RayServePeer(inputs), RAY_PLAN)
                self._openvino = self._child("benchmarks.in_process", cores)
                self.openvino = self._or_note("openvino", self._openvino.ask, {"load": "openvino", **given})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children."""
        for child in self._children:
            child.close()
        self._folder.cleanup()

    def measure(self, number: int, rounds: int) -> Figures:
        """One round: by peer, then by measurement; who does not run is left out, and noted.

        Raises:
            ClipServeError: ours or sentence-transformers does not run.
        """
        found: Figures = {"cores": psutil.cpu_count(), "load_average": os.getloadavg()[0]}
        for name, (peer, plan) in self._peers.items():
            say(f"round {number} of {rounds}: {peer.title}")
            found[name] = self._or_note(name, self._measure_server, name, peer, plan)
        say(f"round {number} of {rounds}: in process")
        job = {"seconds": self._seconds}
        found["sentence_transformers"] = self._or_note("sentence_transformers", self._originals.ask, job)
        if self._openvino is not None:
            found["openvino"] = self._or_note("openvino", self._openvino.ask, job)
        short = self._seconds / 2
        found["floors_alone"] = self._floors[0].ask({"seconds": short, "alone": True})
        found["floors_together"] = joined(ask_together(self._floors, {"seconds": short, "alone": False}))
        return {name: figures for name, figures in found.items() if figures != {}}

    def _child(self, module: str, threads: int) -> Child:
        child = Child(module, threads)
        self._children.append(child)
        return child

    def _or_note(self, name: str, measure: Callable[..., Figures], *arguments: Any) -> Figures:
        """What `measure` gives; nothing, and a note, where a peer of ours does not run, now or before."""
        if self.notes.get(name, MEASURED) != MEASURED:
            return {}
        try:
            figures = measure(*arguments)
        except ClipServeError as error:
            if name in ("clipserve", "sentence_transformers"):
                raise
            say(f"  not measured: {error}")
            self.notes[name] = str(error)
            return {}
        self.notes[name] = MEASURED
        return figures

    def _measure_server(self, name: str, peer: HttpPeer, plan: Sequence[Measurement]) -> Figures:
        try:
            found: Figures = {"start": peer.start()}
            workers = peer.workers()
            memory: dict[str, float] = {}
            primed = set()
            for measurement in plan:
                workload = WORKLOADS[measurement.workload]
                if not peer.serves(workload):
                    continue
                if workload not in primed:
                    # Kernels are chosen and labels remembered before anything is measured.
                    self._load(name, peer, Closed(measurement.workload, PRIME_CLIENTS), found, 0.0)
                    primed.add(workload)
                found[measurement.name] = self._load(name, peer, measurement, found, self._seconds)
                for worker, processes in {**workers, "total": peer.processes()}.items():
                    most = max((resident_megabytes([p]) for p in processes), default=0.0)
                    now = resident_megabytes(processes) if worker == "total" else most
                    memory[worker] = max(memory.get(worker, 0.0), now)
            return {**found, "rss_mb": memory}
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
        start = time.perf_counter()
        meter = CpuMeter(peer.processes)
        machine = _busy_seconds()
        figures = self._generator.ask(asdict(job))
        cpu = meter.seconds()
        busy = _busy_seconds() - machine
        wall = time.perf_counter() - start
        figures["rate"] *= workload.items
        figures["cpu_ms_per_item"] = 1000 * cpu / max(1, figures.pop("answered") * workload.items)
        # What others did on this machine meanwhile: a measurement that they disturbed can be told.
        figures["other_cores"] = max(0.0, busy / wall - cpu / wall - figures["generator_cores"])
        figures["failed"] = sum(figures["errors"].values())
        if isinstance(measurement, Open):
            figures["offered"] = rate * workload.items
        return figures

    def _body_files(self, name: str, peer: HttpPeer, workload: str) -> list[str]:
        """A peer's request bodies of a workload, written once."""
        if (name, workload) not in self._bodies:
            paths = []
            for number, body in enumerate(peer.bodies(WORKLOADS[workload])):
                path = Path(self._folder.name) / f"{name}-{workload}-{number}"
                path.write_bytes(body)
                paths.append(str(path))
            self._bodies[name, workload] = paths
        return self._bodies[name, workload]


def archive_settings(archive: Path) -> Figures:
    """The YAML inside an archive: what the server is told of its endpoint."""
    with zipfile.ZipFile(archive) as content:
        settings: Figures = yaml.safe_load(content.read(f"{archive.stem}.yaml"))
    return settings


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since its start, idle ones left out."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def joined(figures: Sequence[Figures]) -> Figures:
    """Of children that measured at the same time: rates added, everything else averaged."""
    total: Figures = {}
    for key, first in figures[0].items():
        values = [f[key] for f in figures]
        if isinstance(first, Mapping):
            total[key] = joined(values)
        else:
            total[key] = sum(values) if key == "rate" else sum(values) / len(values)
    return total


def image_encoder_shapes(clip: Path) -> Figures:
    """Our encoder's matrix products and floating-point operations, from the checkpoint's config."""
    inner = clip / "0_CLIPModel"
    config = transformers.CLIPConfig.from_pretrained(inner if inner.is_dir() else clip)
    vision: Any = config.vision_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = patches + 1
    products = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)]
    layer = 2 * tokens * sum(rows * columns for rows, columns in products) + 2 * 2 * tokens * tokens * width
    # Of the last layer's tokens but the first, our encoder computes keys and values only; of the first, and
    # of the projection behind it, all products twice (`export_scripts.encoders.layers.alike`).
    keys_values = 2 * tokens * width * 2 * width
    pooled = 2 * 2 * (2 * width * width + 2 * width * mlp + width * config.projection_dim)
    last = keys_values + pooled + 2 * 2 * tokens * width
    patch = 2 * patches * 3 * vision.patch_size**2 * width
    flops = (vision.num_hidden_layers - 1) * layer + last + patch
    return {"products": products, "tokens": tokens, "flops": float(flops)}
