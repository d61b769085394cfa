"""The bulk job beside plain processes on the same cores, in turns; runs in `.venv-scale`: `make bench-bulk`.

Both do the same work with the same functions (read, decode, thumbnail, embed with a full-size ViT-B/32 of
random weights, write), so the ratio is what Ray costs. Starting up is left out on both sides: a rate counts
from when there are two shards for each encoder to the last shard's file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from clipserve.command import run_command
from clipserve.encoder_spec import EncoderSpec, read_spec
from pictures.rows import picture_schema
from scale.bulk.encoding import Encoder
from scale.bulk.plan import Plan, write_plan
from scale.bulk.sources import Picture, find_source
from scale.bulk.stages import decode_shard, write_shard
from standins.image_encoder import export_image_encoder
from standins.many_pictures import write_pictures
from standins.ray_cluster import ROOT, RayCluster

RESULTS = Path(__file__).parent / "results" / "bulk.json"

PHOTOGRAPH = (640, 480)  # pixels
SHARD = 32
BATCH = 32


def plain_worker(plan: Plan, encoder_path: Path, spec: EncoderSpec, numbers: Sequence[int]) -> None:
    """Does shards one after the other, in one process with one thread."""
    assert spec.image is not None
    encoder = Encoder(encoder_path, spec, BATCH, 1)
    for number in numbers:
        decoded = decode_shard({"shard": np.array([number])}, plan, spec.image)
        told = write_shard(encoder(decoded), plan)
        if told["problem"][0]:
            sys.exit(str(told["problem"][0]))


@dataclass(frozen=True)
class Measured:
    """Both of the same span of time.

    Attributes:
        images_per_second: by the clock; of cores that others use as well it says little.
        cpu_ms: CPU time of all processes taken together, for each picture.
    """

    images_per_second: float
    cpu_ms: float


def watch(
    shards: Path,
    pattern: str,
    running: Callable[[], bool],
    processes: Callable[[], list[psutil.Process]],
    cores: int,
) -> Measured:
    """Looks on until the work is done."""
    times: dict[str, int] = {}
    used: dict[int, float] = {}
    before: dict[int, float] = {}
    sampled = 0.0
    while running():
        # The bulk job's files are gone when it is done.
        for path in shards.glob(pattern):
            if path.name not in times:
                with contextlib.suppress(FileNotFoundError):
                    times[path.name] = path.stat().st_mtime_ns
        began = not before and len(times) >= 2 * cores
        if began or time.monotonic() - sampled > 0.5:
            sampled = time.monotonic()
            for process in processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = process.cpu_times()
                    used[process.pid] = spent.user + spent.system
        if began:
            before = dict(used)
            counted = len(times)
        time.sleep(0.02)
    ordered = sorted(times.values())
    pictures = (len(ordered) - counted) * SHARD
    spent_s = sum(used.values()) - sum(before.values())
    return Measured(pictures / ((ordered[-1] - ordered[counted - 1]) / 1e9), 1000 * spent_s / pictures)


def plain(images: Path, work: Path, encoder_path: Path, cores: int) -> Measured:
    """One plain process a core."""
    spec = read_spec(encoder_path)
    source = find_source(images, None)
    schema = picture_schema(spec.space_id, spec.model_id, spec.embedding_dim)
    pictures = [item for item in source.list() if isinstance(item, Picture)]
    plan = write_plan(work / "plain", source, schema, SHARD, pictures)
    assert plan is not None
    workers = [
        multiprocessing.get_context("spawn").Process(
            target=plain_worker, args=(plan, encoder_path, spec, range(core, plan.shards, cores))
        )
        for core in range(cores)
    ]
    for worker in workers:
        worker.start()
    watched = [psutil.Process(worker.pid) for worker in workers]
    measured = watch(
        plan.job,
        "shards/[0-9]*.arrow",
        lambda: any(worker.is_alive() for worker in workers),
        lambda: watched,
        cores,
    )
    plan.forget()
    return measured


def bulk(images: Path, work: Path, encoder_path: Path, cores: int, cluster: RayCluster) -> Measured:
    """The bulk job on a cluster of as many cores; the cluster's own processes and the driver count."""
    table = work / f"table-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "scale.bulk", str(images), "--table", str(table)]
    command += ["--encoder", str(encoder_path), "--ray-address", cluster.address]
    command += ["--shard-size", str(SHARD), "--batch-size", str(BATCH), "--encoders", str(cores)]
    job = psutil.Popen(command, cwd=ROOT, env=cluster.environment, stdout=subprocess.DEVNULL)
    measured = watch(
        table,
        "bulk/*/shards/[0-9]*.arrow",
        lambda: job.poll() is None,
        lambda: [job, *cluster.processes()],
        cores,
    )
    if job.returncode:
        sys.exit(f"the bulk job ended with {job.returncode}")
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--encoder", type=Path, help="an image encoder for cpu (a ViT-B/32 of random weights)"
    )
    arguments = parser.parse_args(argv)
    return run_command("bench-bulk", lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> None:
    cores = arguments.cores
    with tempfile.TemporaryDirectory(prefix="clipserve-bulk-") as name:
        work = Path(name)
        encoder = arguments.encoder or export_image_encoder(work / "store", "vit-b-32")
        write_pictures(work / "images", arguments.pictures, size=PHOTOGRAPH)
        rounds = []
        with RayCluster((cores,), 400) as cluster:
            for number in range(arguments.rounds):
                # Whoever goes second finds the machine as the first has left it: by turns.
                values = {"load_average": os.getloadavg()[0]}
                for side in ("plain", "bulk") if number % 2 == 0 else ("bulk", "plain"):
                    if side == "plain":
                        measured = plain(work / "images", work, encoder.absolute(), cores)
                    else:
                        measured = bulk(work / "images", work, encoder.absolute(), cores, cluster)
                    values[f"{side}_images_per_s"] = measured.images_per_second
                    values[f"{side}_cpu_ms"] = measured.cpu_ms
                values["ratio_images_per_s"] = values["bulk_images_per_s"] / values["plain_images_per_s"]
                values["ratio_by_cpu_time"] = values["plain_cpu_ms"] / values["bulk_cpu_ms"]
                rounds.append(values)
                print("  ".join(f"{key} {value:.2f}" for key, value in values.items()), flush=True)
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    result = {"cores": cores, "pictures": arguments.pictures, "rounds": rounds, "medians": medians}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"bulk job / plain processes: {medians['ratio_images_per_s']:.2f} by the clock, "
        f"{medians['ratio_by_cpu_time']:.2f} by CPU time"
    )


if __name__ == "__main__":
    sys.exit(main())
