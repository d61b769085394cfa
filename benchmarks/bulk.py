"""The bulk job beside plain processes on the same cores, in turns; runs in `.venv-scale`: `make bench-bulk`.

Both do the same work with the same functions (read, decode, thumbnail, embed with a full-size ViT-B/32 of
random weights, write), so the ratio is what Ray costs. Starting up is left out on both sides: a rate counts
from when there are two shards for each encoder to the last shard's file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipserve.encoder_spec import EncoderSpec, read_spec
from scale.bulk.encoding import Encoder
from scale.bulk.plan import Plan, write_plan
from scale.bulk.sources import Picture, find_source
from scale.bulk.stages import decode_shard, write_shard
from search.rows import picture_schema
from tests.scale.image_encoder import export_image_encoder
from tests.scale.pictures import write_pictures
from tests.scale.ray_cluster import ROOT, RayCluster

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


def plain_rate(images: Path, work: Path, encoder_path: Path, cores: int) -> float:
    """Images per second of one plain process a core."""
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
    for worker in workers:
        worker.join()
    times = sorted(plan.output(number).stat().st_mtime_ns for number in range(plan.shards))
    plan.forget()
    return _rate(times, cores)


def bulk_rate(images: Path, work: Path, encoder_path: Path, cores: int, cluster: RayCluster) -> float:
    """Images per second of the bulk job on a cluster of as many cores."""
    table = work / f"table-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "scale.bulk", str(images), "--table", str(table)]
    command += ["--encoder", str(encoder_path), "--ray-address", cluster.address]
    command += ["--shard-size", str(SHARD), "--batch-size", str(BATCH), "--encoders", str(cores)]
    job = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=subprocess.DEVNULL)
    times: dict[str, int] = {}
    while job.poll() is None:
        # The files are gone when the job is done.
        for path in table.glob("bulk/*/shards/[0-9]*.arrow"):
            if path.name not in times:
                times[path.name] = path.stat().st_mtime_ns
        time.sleep(0.02)
    if job.returncode:
        sys.exit(f"the bulk job ended with {job.returncode}")
    return _rate(sorted(times.values()), cores)


def _rate(times: Sequence[int], cores: int) -> float:
    first = 2 * cores
    return (len(times) - first) * SHARD / ((times[-1] - times[first - 1]) / 1e9)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 done, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--encoder", type=Path, help="an image encoder for cpu (a ViT-B/32 of random weights)"
    )
    arguments = parser.parse_args(argv)
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
                        values[side] = plain_rate(work / "images", work, encoder.absolute(), cores)
                    else:
                        values[side] = bulk_rate(work / "images", work, encoder.absolute(), cores, cluster)
                values["ratio"] = values["bulk"] / values["plain"]
                rounds.append(values)
                print("  ".join(f"{key} {value:.2f}" for key, value in values.items()), flush=True)
    ratio = statistics.median(values["ratio"] for values in rounds)
    result = {"cores": cores, "pictures": arguments.pictures, "rounds": rounds, "ratio": ratio}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"bulk job / plain processes: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
