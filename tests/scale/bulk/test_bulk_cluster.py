"""The bulk job on a real cluster of several nodes, of which processes are killed while it runs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import lancedb
import numpy as np
import psutil
import torch

from clipserve.encoder import ExportedImageEncoder
from clipserve.images import ImageLimits, decode_image, preprocess
from pictures.table import open_table
from standins.image_encoder import export_image_encoder
from standins.many_pictures import write_pictures
from standins.ray_cluster import ROOT, RayCluster

ENCODER = ROOT / "model_store" / "demo" / "demo-image-cpu-fp32.pt"
DEADLINE = 3600
LIMITS = ImageLimits()


class Job:
    """`python -m scale.bulk` in a process of its own."""

    def __init__(self, cluster: RayCluster, images: Path, table: Path, *words: str, encoder: Path = ENCODER):
        self._shards = table / "bulk"
        command = [sys.executable, "-m", "scale.bulk", str(images), "--table", str(table)]
        command += ["--encoder", str(encoder), "--ray-address", cluster.address, *words]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self) -> dict[Path, int]:
        """The files of shards, and when each was written."""
        found = {}
        for path in self._shards.glob("*/shards/[0-9]*.arrow"):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return found

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives, as soon as it is true while the job runs."""
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return value

    def kill_a_writer(self) -> None:
        """Kills a process that has begun to write a shard's file and has not put it in its place yet."""

        def killed() -> bool:
            for path in self._shards.glob("*/shards/.*.arrow.*"):
                try:
                    os.kill(int(path.name.rpartition(".")[2]), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                # It may have been done the moment before.
                time.sleep(0.2)
                if path.exists():
                    return True
            return False

        self.wait_for(killed)

    def kill_all_encoders(self, cluster: RayCluster) -> None:
        """Kills the processes that hold the encoder."""

        def killed() -> int:
            count = 0
            for process in cluster.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.cmdline()[:1] and "(Encoder)" in process.cmdline()[0]:
                        process.kill()
                        count += 1
            return count

        self.wait_for(killed)

    def peak_memory(self, cluster: RayCluster) -> float:
        """The most that the job and all processes of the cluster have at once until it ends, in MB.

        What processes share, as the object store is, is counted once.
        """
        peak = 0
        while self._process.poll() is None:
            used = 0
            for process in [psutil.Process(self._process.pid), *cluster.processes()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    used += process.memory_full_info().pss
            peak = max(peak, used)
            time.sleep(0.5)
        return peak / 1e6

    def kill(self) -> None:
        """Kills the driver."""
        self._process.kill()
        self._process.communicate()

    def output(self) -> str:
        return self._process.communicate()[0]

    def finish(self) -> str:
        """What it printed; it must have ended well."""
        output = self._process.communicate(timeout=DEADLINE)[0]
        assert self._process.returncode == 0, output
        return output


def paths_of(table: Path, name: str) -> Counter[str]:
    rows = lancedb.connect(table).open_table(name).search().select(["path"]).limit(None).to_arrow()
    return Counter(rows["path"].to_pylist())


def assert_once_each(table: Path, good: list[Path], bad: list[Path]) -> None:
    """Every picture in its table exactly once: duplicates and losses are counted."""
    for name, expected in (("pictures", good), ("errors", bad)):
        found = paths_of(table, name)
        assert {path: count for path, count in found.items() if count > 1} == {}, "twice"
        assert set(found) - set(map(str, expected)) == set(), "from nowhere"
        assert set(map(str, expected)) - set(found) == set(), "lost"


def assert_equal_to_one_process(table: Path, pictures: list[Path]) -> None:
    """The embeddings are those that the encoder gives here, without Ray."""
    encoder = ExportedImageEncoder(ENCODER, torch.device("cpu"))
    rows = lancedb.connect(table).open_table("pictures").search().select(["path", "embedding"]).limit(None)
    embeddings = {row["path"]: np.array(row["embedding"]) for row in rows.to_arrow().to_pylist()}
    for start in range(0, len(pictures), 32):
        part = pictures[start : start + 32]
        pixels = [
            preprocess(decode_image(path.read_bytes(), LIMITS), encoder.preprocessing, LIMITS)
            for path in part
        ]
        for path, embedding in zip(part, encoder.embed(pixels), strict=True):
            assert embeddings[str(path)] @ embedding >= 0.9999, path


def write_bad(folder: Path, good: list[Path], count: int) -> list[Path]:
    """Files that cannot be embedded: cut off, and no picture at all."""
    bad = []
    for number in range(count):
        data = good[number].read_bytes()
        path = folder / f"bad-{number}.jpg"
        path.write_bytes(data[: len(data) // 2] if number % 2 else b"no picture %d" % number)
        old = good[number].stat().st_mtime_ns
        os.utime(path, ns=(old, old))
        bad.append(path)
    return bad


def run_with_a_node_and_a_writer_killed(
    cluster: RayCluster, tmp_path: Path, count: int, words: list[str]
) -> tuple[list[Path], list[Path]]:
    """The acceptance of the bulk job, of any size; gives the good and the bad pictures."""
    images, table = tmp_path / "images", tmp_path / "table"
    good = write_pictures(images, count)
    bad = write_bad(images, good, max(6, count // 1000))
    job = Job(cluster, images, table, *words)
    shards = -(-(len(good) + len(bad)) // int(words[words.index("--shard-size") + 1]))
    job.wait_for(lambda: len(job.done()) >= shards // 8)
    job.kill_a_writer()
    job.wait_for(lambda: len(job.done()) >= shards // 2)
    assert len(job.done()) < shards
    cluster.kill_node(1)
    output = job.finish()
    assert f"{len(good)} added, 0 changed" in output, output
    assert f"{len(bad)} errors" in output, output
    assert_once_each(table, good, bad)
    assert_equal_to_one_process(table, good)
    assert not any((table / "bulk").iterdir())
    return good, bad


def test_killed_node_writer_and_driver_lose_and_double_nothing(tmp_path: Path) -> None:
    words = ["--shard-size", "16"]
    with RayCluster((1, 1), 200) as cluster:
        good, bad = run_with_a_node_and_a_writer_killed(cluster, tmp_path, 600, words)
        images, table = tmp_path / "images", tmp_path / "table"

        # `search` reads it.
        opened = open_table(table)
        for path in good[::150]:
            row = opened.by_hash([opened.states()[str(path)].sha256])
            embedding = next(iter(row.values()))[0]
            assert opened.nearest(embedding, 1)[0].path == str(path)

        # New, changed and repaired pictures; the driver is killed half-way.
        new = write_pictures(images / "new", 200, seed=1)
        shutil.copy2(new[0], good[0])
        shutil.copy2(new[1], bad[0])
        job = Job(cluster, images, table, *words)
        before = job.wait_for(lambda: len(job.done()) >= 4 and job.done())
        job.kill()
        assert paths_of(table, "pictures").total() == 600
        again = Job(cluster, images, table, *words)
        again.wait_for(lambda: len(again.done()) > len(before))
        assert before.items() <= again.done().items(), "a shard that was done is done again"
        # The only one there is: the job goes on with another.
        again.kill_all_encoders(cluster)
        output = again.finish()
        assert "201 added, 1 changed" in output, output
        good, bad = [*good, *new, bad[0]], bad[1:]
        assert_once_each(table, good, bad)
        assert_equal_to_one_process(table, good)

        # Nothing is missing: nothing is done.
        output = Job(cluster, images, table, *words).finish()
        assert "0 added, 0 changed, 0 committed before, 801 unchanged, 5 failed before; 0 errors" in output


@pytest.mark.full
def test_20000_pictures_with_a_node_and_a_writer_killed(tmp_path: Path) -> None:
    with RayCluster((1, 1), 300) as cluster:
        run_with_a_node_and_a_writer_killed(cluster, tmp_path, 20_000, ["--shard-size", "64"])


@pytest.mark.full
def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    # 224 x 224 pixels, of 3 bytes: 7,000 pictures are 1.05 GB decoded, ten times the object store.
    encoder = export_image_encoder(tmp_path / "store", "narrow")
    peaks = []
    for count in (1_000, 7_000):
        images, table = tmp_path / f"images-{count}", tmp_path / f"table-{count}"
        write_pictures(images, count, size=(320, 240))
        with RayCluster((2,), 100) as cluster:
            job = Job(cluster, images, table, "--shard-size", "64", encoder=encoder)
            peaks.append(job.peak_memory(cluster))
            output = job.finish()
            spilled = sum(path.stat().st_size for path in cluster.spilled())
        print(f"{count} pictures: peak {peaks[-1]:.0f} MB, {spilled / 1e6:.0f} MB spilled; {output}")
        assert f"{count} added" in output
    assert peaks[1] < 1.15 * peaks[0]
