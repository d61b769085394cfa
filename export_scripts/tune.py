"""Finds the fastest settings for this machine and builds the archives with them: `make tune`.

Every precision that the hardware multiplies, every division of the cores into workers x threads and
every batch size is timed, with as many workers at once as would serve. All that is timed has kept its parity
bound at export. int8 is timed and shown as well, and chosen where it is allowed. What is chosen goes into
`tuned.json` in the store, which `make archive` and `make serve-ray` obey.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import transformers
from tqdm import tqdm

from clipserve.command import run_command
from clipserve.encoder_spec import Device, Modality, Precision, read_spec
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ExportError, ParityError
from clipserve.hardware import cpu_capability, int8_levels, native_precisions, usable_cores
from clipserve.store import EncoderFile, Store
from clipserve.tuned import TUNED_FILE, Tuned, write_tuned
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.export import DEFAULT_MODEL, STORE
from export_scripts.packages.archive import ROOT, build_archives
from export_scripts.publish import check_device, export_encoder
from export_scripts.timing import TEXT_TOKENS

SECONDS = 0.5  # of one measurement

# What is timed, for people.
THINGS: dict[Modality, str] = {"image": "pictures", "text": f"texts of {TEXT_TOKENS} tokens"}

# A larger batch must gain more than this to be worth the longer wait.
WORTH = 0.03

# More threads in fewer workers must gain more than this. Only the forward pass is timed: decoding, JSON and
# the way through the server leave a worker's other threads idle, while other workers go on beside them.
WORTH_OF_THREADS = 0.1

# Between a worker's answer to one batch and the next batch, while it computes nothing: a text of the demo
# checkpoint takes 5.0 ms at one client, and 1.8 ms in the encoder.
ROUND_TRIP_SECONDS = 0.003

# Of a worker beside its weights: Python, PyTorch and a batch, MB.
WORKER_MEGABYTES = 400


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        file: name of the encoder file.
        min_cosine: from its certificate.
        workers, threads: processes at once, and threads of each.
        batch: items of one forward pass.
        per_second: items of all workers together, median of the rounds.

    The forward pass alone is timed; `served` allows for the way between the server and its workers.
    """

    file: str
    modality: Modality
    precision: Precision
    min_cosine: float
    workers: int
    threads: int
    batch: int
    per_second: float

    @property
    def served(self) -> float:
        """Items per second with the time between two batches, from which large ones gain."""
        together = self.workers * self.batch
        return together / (together / self.per_second + ROUND_TRIP_SECONDS)


def export_candidates(pair: CheckpointPair, device: Device, store: Path) -> list[Path]:
    """Exports what is not in the store yet of the precisions that this hardware multiplies.

    Returns:
        Every file of the pair for this device that runs here, of whatever format.

    Raises:
        ExportError: the device is not to be had.
    """
    check_device(device, None)
    modalities: tuple[Modality, ...] = ("image", "text")
    for modality in modalities:
        for precision in timed_precisions(device):
            if any(file.spec.precision == precision for file in _of_pair(pair, modality, device, store)):
                continue
            print(f"exporting the {modality} encoder in {precision}", flush=True)
            try:
                export_encoder(pair, modality, device, precision, store)
            except ParityError as error:
                if precision == "fp32":
                    raise
                print(f"left out: {error}", flush=True)
    return [file.path for modality in modalities for file in _of_pair(pair, modality, device, store)]


def timed_precisions(device: Device) -> tuple[Precision, ...]:
    """What the hardware multiplies, int8 included."""
    int8: tuple[Precision, ...] = ("int8",) if device == "cpu" and int8_levels() is not None else ()
    return *native_precisions(device), *int8


def _of_pair(pair: CheckpointPair, modality: Modality, device: Device, store: Path) -> list[EncoderFile]:
    wanted = (pair.space_id, modality, device)
    fitting = Store.read(store).where(lambda spec: (spec.space_id, spec.modality, spec.device) == wanted)
    return [file for file in fitting.encoders if file.runs_here()]


def layouts(device: Device, megabytes: float) -> list[tuple[int, int]]:
    """Workers x threads that use all cores, as far as workers of this size fit into an endpoint's memory.

    All endpoints share one half of the machine's.
    """
    if device == "cuda":
        return [(1, 1)]
    cores = usable_cores()
    most = max(1, int(psutil.virtual_memory().total / 1e6 / 2 / len(ENDPOINTS) / megabytes))
    return [
        (workers, cores // workers)
        for workers in range(1, cores + 1)
        if cores % workers == 0 and workers <= most
    ]


def time_file(path: Path, workers: int, threads: int, seconds: float) -> list[Timing]:
    """Times every batch size of one file in one layout; see `export_scripts.timing`.

    Raises:
        ExportError: the file does not load.
    """
    command = [sys.executable, "-m", "export_scripts.timing", str(path.resolve())]
    command += ["--workers", str(workers), "--threads", str(threads), "--seconds", str(seconds)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ExportError(f"{path.name} cannot be timed: {result.stderr.strip().splitlines()[-1]}")
    spec = read_spec(path)
    return [
        Timing(
            path.name,
            spec.modality,
            spec.precision,
            spec.certificate.min_cosine,
            workers,
            threads,
            int(batch),
            statistics.median(rates),
        )
        for batch, rates in json.loads(result.stdout).items()
    ]


def choose(timings: Sequence[Timing]) -> Timing:
    """The fastest file, in the most workers and then with the smallest batch that are nearly as fast."""
    of_files: dict[str, list[Timing]] = {}
    for timing in timings:
        of_files.setdefault(timing.file, []).append(timing)
    of_best = max(of_files.values(), key=_speed)
    best = max(of_best, key=lambda timing: timing.served)
    enough = (1 - WORTH_OF_THREADS) * best.served
    fast = [t for t in of_best if t.served >= enough]
    workers = max(t.workers for t in fast)
    alike = [t for t in fast if t.workers == workers]
    enough = (1 - WORTH) * max(t.served for t in alike)
    return min((t for t in alike if t.served >= enough), key=lambda timing: timing.batch)


def _speed(of_file: Sequence[Timing]) -> float:
    """Of one file: items per second under load, times those of a lone caller where all cores are his.

    Both count alike: files that are level under load may be far apart for the one who waits.
    """
    lone = max(t.per_second / t.workers for t in of_file if t.batch == min(t.batch for t in of_file))
    return lone * max(t.served for t in of_file)


def tune(
    pair: CheckpointPair,
    device: Device,
    store: Path,
    seconds: float = SECONDS,
    *,
    allow_int8: bool = False,
) -> dict[str, Tuned]:
    """Times all candidates, writes `tuned.json` and `tuned.png`, and returns what each endpoint should have.

    Args:
        seconds: of one measurement.
        allow_int8: whether int8 may be chosen, which loses more than the others.

    Raises:
        ClipServeError: an encoder cannot be exported or does not load.
    """
    candidates = export_candidates(pair, device, store)
    work = [
        (path, workers, threads)
        for path in candidates
        for workers, threads in layouts(device, path.stat().st_size / 1e6 + WORKER_MEGABYTES)
    ]
    timings: list[Timing] = []
    with tqdm(work, unit="layout", leave=False) as bar:
        for path, workers, threads in bar:
            bar.set_description(f"{path.name}, {workers} workers x {threads} threads")
            timings += time_file(path, workers, threads, seconds)
    best: dict[Modality, Timing] = {
        modality: choose(
            [t for t in timings if t.modality == modality and (allow_int8 or t.precision != "int8")]
        )
        for modality in get_args(Modality)
    }
    tuned = {}
    for name, endpoint in ENDPOINTS.items():
        # Similarity is mostly pictures: its texts are remembered.
        leading = best[endpoint.modalities[0]]
        files = tuple(best[modality].file for modality in endpoint.modalities)
        fitting = layouts(device, sum((store / f).stat().st_size for f in files) / 1e6 + WORKER_MEGABYTES)
        workers, threads = max(layout for layout in fitting if layout[0] <= leading.workers)
        tuned[name] = Tuned(files, workers, threads, leading.batch)
    machine = {"cores": usable_cores(), "cpu_capability": cpu_capability()}
    write_tuned(store, pair.space_id, tuned, {"machine": machine, "timings": [asdict(t) for t in timings]})
    plot(timings, [best["image"], best["text"]], store / "tuned.png")
    return tuned


def plot(timings: Sequence[Timing], chosen: Sequence[Timing], path: Path) -> None:
    """Speed as served against fidelity, a panel for each encoder; what was chosen is ringed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), dpi=120, layout="constrained")
    for axes, best in zip(panels, chosen, strict=True):
        of_encoder = [t for t in timings if t.modality == best.modality]
        layouts_seen = sorted({(t.workers, t.threads) for t in of_encoder})
        for index, layout in enumerate(layouts_seen):
            points = [t for t in of_encoder if (t.workers, t.threads) == layout]
            axes.scatter(
                [_loss(t) for t in points],
                [t.served for t in points],
                s=[12 + 3 * t.batch for t in points],
                # Told apart by their shape as well: colours alone are not for everybody.
                marker="osD^v"[index % 5],
                alpha=0.6,
                label=f"{layout[0]} x {layout[1]}",
            )
        axes.scatter(
            [_loss(best)], [best.served], s=320, facecolors="none", edgecolors="black", clip_on=False
        )
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.margins(x=0.25)
        # Room for the ring around the highest point.
        axes.set_ylim(0, 1.15 * max(t.served for t in of_encoder))
        axes.set_title(
            f"{best.modality} encoder; ringed: {best.precision}, {best.workers} x {best.threads}, "
            f"batch {best.batch}\n"
            f"the smallest batch within {WORTH:.0%} of the fastest in as many workers",
            fontsize=10,
        )
        axes.set_xlabel("1 - min cosine to the original (further right is closer)")
        axes.set_ylabel(f"{THINGS[best.modality]}/s, with the time between two batches")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=8, title="workers x threads; larger: larger batch"
    )
    figure.savefig(path)
    plt.close(figure)


def _loss(timing: Timing) -> float:
    """1 - min cosine; float32's is not told from 0 in float32 arithmetic."""
    return max(1 - timing.min_cosine, float(np.finfo(np.float32).eps))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts tune", description=__doc__)
    parser.add_argument("--model", help=f"'demo', a hub name or a folder ({DEFAULT_MODEL})")
    parser.add_argument("--text-model", help="hub name or folder of the text encoder")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--int8", choices=["allow"], help="let int8 be chosen too")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def work() -> None:
        if arguments.model is None:
            Store.read(arguments.store).model(None)
        pair = load_pair(arguments.model or DEFAULT_MODEL, arguments.text_model)
        arguments.store.mkdir(parents=True, exist_ok=True)
        tuned = tune(
            pair,
            arguments.device,
            arguments.store,
            arguments.seconds,
            allow_int8=arguments.int8 == "allow",
        )
        for name, settings in tuned.items():
            print(
                f"{name}: {settings.workers} workers x {settings.threads} threads, batch {settings.batch}, "
                f"{', '.join(settings.files)}"
            )
        build_archives(arguments.store, pair.model_id, None)
        print(f"{arguments.store / TUNED_FILE} and tuned.png say what was measured; 'make serve' serves it")

    return run_command("tune", work)
