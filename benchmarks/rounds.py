"""The rounds: each peer in turn, each measurement once a round."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import transformers

from benchmarks.child import Child, ask_together, say
from benchmarks.engines import Engines, judged_pictures
from benchmarks.infinity import InfinityPeer
from benchmarks.ours import RayServePeer, TorchServePeer
from benchmarks.peers import HttpPeer, Inputs
from benchmarks.plan import (
    INT8_PLAN,
    LAYOUT_PLAN,
    ONCE,
    PLAN,
    RAY_PLAN,
    SMALL_LAYOUT_PLAN,
    SMALL_PLAN,
    Measurement,
)
from benchmarks.servers import Figures, ServerMeter
from benchmarks.usage import Machine, Quiet
from benchmarks.variants import COMPARED, build_int8, build_other_layout, layout_of
from benchmarks.workloads import WORKLOADS
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ClipServeError
from export_scripts.checkpoints.pair import CheckpointPair

# Of a slice of an engine alone, of what is told for a request over HTTP.
ENGINE_SHARE = 0.15

# What `expected_seconds` counts with, on two cores: a server's start and end; a measurement with its warm-up
# and the answers that come after it; all that is timed in process; all engines.
START_SECONDS = 25.0
LOAD_SHARE, LOAD_SECONDS = 1.3, 1.0
IN_PROCESS_SHARE = 25.0
ENGINES_SECONDS = 120.0

MEASURED = "measured"


class Rounds:
    """The children that measure, and the servers that are measured.

    Args:
        store: our archives and encoders.
        work: folder for what is made of them: other archives, the peers' files.
        pair: the checkpoints that they were made of; `clip`, `text` are their folders.
        pictures: JPEG files by size.
        workers: of our endpoints, where not what their archives say.
        seconds: of a measurement.
        small: ours and what runs in process only.

    Attributes:
        notes: of each peer `MEASURED`, or why it was not.
        encoders: ours, by modality.
        quiet: what was repeated because of other programs.

    Raises:
        PeerError: sentence-transformers or our encoders do not run.
    """

    def __init__(
        self,
        store: Path,
        work: Path,
        pair: CheckpointPair,
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
        self._children: list[Child] = []
        self.notes: dict[str, str] = {}
        self.quiet = Quiet()
        cores = psutil.cpu_count() or 1
        given = {
            "clip": str(clip),
            "text": str(text),
            "pictures": {key: [str(path) for path in paths] for key, paths in pictures.items()},
        }
        try:
            say("loading what runs in process")
            generator = self._child("benchmarks.load", 1)
            self._meter = ServerMeter(generator, Path(self._folder.name), seconds, self.quiet)
            self._originals = self._child("benchmarks.in_process", cores)
            self._of_originals: list[str] = self._originals.ask(given)["measurements"]
            judged = [str(path) for path in judged_pictures(pictures)]
            references = self._originals.ask({"embed": judged})
            vectors = {key: np.array(references[key], np.float32) for key in ("image", "text")}
            self._shapes = image_encoder_shapes(clip)
            layouts = {name: layout_of(store, name) for name in ENDPOINTS}
            self._workers = {name: workers.get(name, of.workers) for name, of in layouts.items()}
            floors = {"store": str(store), **given, **self._shapes, "threads": layouts["clip_image"].threads}
            self._floors = [self._child("benchmarks.floors", 1) for _ in range(cores)]
            facts = ask_together(self._floors, floors)[0]
            self.encoders, self._of_floors = facts["encoders"], facts
            say("preparing what others run, in fp32 and int8")
            self._engines = Engines(
                pair,
                store,
                {"image": clip, "text": text},
                pictures,
                self._shapes["tokens"],
                {"image": vectors["image"], "text": vectors["text"]},
                work / "peers",
                ENGINE_SHARE * seconds,
            )
            inputs = Inputs(pictures, clip, text, store, vectors["image"][0])
            self._peers = self._servers(store, work, inputs, workers, small)
        except BaseException:
            self.close()
            raise

    def _servers(
        self, store: Path, work: Path, inputs: Inputs, workers: Mapping[str, int], small: bool
    ) -> dict[str, tuple[HttpPeer, Sequence[Measurement], Sequence[Measurement]]]:
        """Each server with what is measured of it, in every round and once."""
        plan, once = (SMALL_PLAN, ()) if small else (PLAN, ONCE)
        found: dict[str, tuple[HttpPeer, Sequence[Measurement], Sequence[Measurement]]] = {
            "clipserve": (TorchServePeer(inputs, "clipserve", tuple(ENDPOINTS), workers), plan, once)
        }
        layout_plan = SMALL_LAYOUT_PLAN if small else LAYOUT_PLAN
        for name, title, build, its_plan in (
            ("clipserve_int8", "clipserve in int8", build_int8, INT8_PLAN),
            ("clipserve_other_layout", "clipserve, workers the other way", build_other_layout, layout_plan),
        ):
            folder = work / name
            try:
                build(store, folder)
            except ClipServeError as error:
                self.notes[name] = str(error)
            else:
                peer = TorchServePeer(replace(inputs, store=folder), title, COMPARED)
                found[name] = (peer, its_plan, ())
        if not small:
            found["infinity"] = (InfinityPeer(inputs), plan, once)
            found["ray_serve"] = (RayServePeer(inputs), RAY_PLAN, ())
        return found

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children."""
        for child in self._children:
            child.close()
        self._folder.cleanup()

    def expected_seconds(self, number: int) -> float:
        """How long a round will take, about."""
        loads = [
            (measurement, WORKLOADS[measurement.workload])
            for peer, plan, once in self._peers.values()
            for measurement in (*plan, *(once if number == 1 else ()))
            if peer.serves(WORKLOADS[measurement.workload])
        ]
        return (
            START_SECONDS * len(self._peers)
            + sum(LOAD_SHARE * self._seconds + LOAD_SECONDS for _ in loads)
            + IN_PROCESS_SHARE * self._seconds
            + ENGINES_SECONDS
        )

    def measure(self, number: int, tell: Callable[[str], None]) -> Figures:
        """One round: by peer, then by measurement; who does not run is left out, and noted.

        Args:
            number: from 1.
            tell: is told what comes next.

        Raises:
            ClipServeError: ours or sentence-transformers does not run.
        """
        found: Figures = {"cores": psutil.cpu_count(), "load_average": os.getloadavg()[0]}
        for name, (peer, plan, once) in self._peers.items():
            tell(peer.title)
            wanted = (*plan, *once) if number == 1 else plan
            found[name] = self._or_note(name, self._meter.measure, name, peer, wanted)
        found["layouts"] = by_layout(
            found["clipserve"], found.get("clipserve_other_layout", {}), self._workers
        )
        tell("sentence-transformers in process")
        found["sentence_transformers"] = {
            measurement: self._asked([self._originals], measurement, self._seconds)
            for measurement in self._of_originals
        }
        tell("decoding and encoding in process")
        found["floors_alone"] = self._measure_floors(self._floors[:1], ("together", "alone"))
        found["floors_together"] = self._measure_floors(self._floors, ("together",))
        tell("encoders alone, in every engine")
        found["engines"] = self._engines.turn(number, self.quiet)
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
            if name == "clipserve":
                raise
            say(f"  not measured: {error}")
            self.notes[name] = str(error)
            return {}
        self.notes[name] = MEASURED
        return figures

    def _asked(self, children: Sequence[Child], measurement: str, seconds: float) -> Figures:
        """A measurement in process, by several children at once."""

        def measure() -> Figures:
            machine = Machine()
            answers = ask_together(children, {"measure": measurement, "seconds": seconds})
            other_cores = machine.other_cores(sum(answer.pop("cpu_s") for answer in answers))
            return {**joined(answers), "other_cores": other_cores}

        return self.quiet.measure(f"{measurement} in process", measure)

    def _measure_floors(self, children: Sequence[Child], which: Sequence[str]) -> Figures:
        found: Figures = {}
        for measurement in (name for of in which for name in self._of_floors[of]):
            figures = self._asked(children, measurement, self._seconds / 2)
            found[measurement] = figures.get("value", figures)
        of_a_core = found["model_batch8"]["rate"] / len(children)
        found["model_gflops"] = of_a_core * self._shapes["flops"] / 1e9
        return found


def by_layout(tuned: Figures, other: Figures, workers: Mapping[str, int]) -> Figures:
    """One worker with all cores beside several that share them, of servers that have one each.

    Args:
        tuned, other: figures of the two.
        workers: of an endpoint of the first.
    """
    if not other:
        return {}
    found: Figures = {"one_worker": {}, "several_workers": {}}
    for endpoint in COMPARED:
        kind = endpoint.removeprefix("clip_")
        one, several = (other, tuned) if workers[endpoint] > 1 else (tuned, other)
        for name, figures in (("one_worker", one), ("several_workers", several)):
            for measurement in (f"{kind}_c{clients}" for clients in (1, 8, 32)):
                if measurement in tuned and measurement in other:
                    found[name][measurement] = {key: figures[measurement][key] for key in ("rate", "p50_ms")}
            found[name][f"{kind}_workers_mb"] = figures["rss_all_mb"][endpoint]
    return found


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
