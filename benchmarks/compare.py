"""Everything side by side in one run: `make bench`, `make bench-small`, `make bench-report`.

Our server, in several layouts and precisions, other servers, and every engine in process get the same
pictures and sentences on the same cores, in turns, several rounds of them. Full-size checkpoints (ViT-B/32,
and the shape of the multilingual DistilBERT) with seeded random weights. What counts are the ratios of one
run; the absolute numbers belong to its machine.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import psutil
import transformers

from benchmarks import figures, report, results_file
from benchmarks.child import PeerError, say
from benchmarks.engines import OPENVINO_ENVIRONMENT
from benchmarks.infinity import INFINITY_ENVIRONMENT
from benchmarks.ratios import Round
from benchmarks.rounds import Rounds
from benchmarks.variants import archive_settings
from benchmarks.workloads import SIZES, write_pictures
from clipserve.command import run_command
from clipserve.encoder_spec import Modality, Precision
from clipserve.endpoints import ENDPOINTS
from clipserve.hardware import cpu_has_native_bf16
from clipserve.interrupt import interrupt_on_sigterm
from export_scripts.checkpoints.loading import load_pair
from export_scripts.packages.archive import build_archives
from export_scripts.publish import export_encoder
from export_scripts.tune import tune
from standins.checkpoints import write_pair

# Checkpoints, pictures and archives; the first two are made once.
WORK = Path(__file__).parents[1] / ".bench"

SECONDS = 2.0
ROUNDS = 3
MINUTES = 30.0

# To write checkpoints, export and tune in every precision, and quantise for peers, on two cores.
PREPARE_SECONDS = 540.0
TUNE_SECONDS = 0.2  # of a measurement

# For CI: what is measured there is the instrument.
SMALL_SECONDS = 170.0
SMALL_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# Of those that /proc/cpuinfo names.
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)

VERSIONS = (
    "torch",
    "torchserve",
    "transformers",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
    "pillow",
    "numpy",
    "tokenizers",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at least three for a spread")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="no round begins that would probably end later"
    )
    parser.add_argument(
        "--store", type=Path, help="archives made of the checkpoints; default: exported and tuned anew"
    )
    parser.add_argument("--model", type=Path, help="folder of the CLIP checkpoint; default: random weights")
    parser.add_argument("--text-model", type=Path, help="folder of the text checkpoint, with --model")
    parser.add_argument(
        "--workers",
        type=_workers,
        action="append",
        default=[],
        metavar="ENDPOINT=N",
        help="workers of one of our endpoints, where not what its archive says",
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny checkpoints, without servers of others, one round"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write the pages and the plots"
    )
    parser.add_argument("--output", type=Path, default=results_file.LATEST, help="the JSON file")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def compare() -> None:
        if (arguments.model is None) != (arguments.text_model is None):
            parser.error("--model and --text-model go together")
        if not arguments.report:
            measured = run(
                seconds=arguments.seconds,
                rounds=1 if arguments.small else arguments.rounds,
                store=arguments.store,
                checkpoints=(arguments.model, arguments.text_model) if arguments.model else None,
                workers=dict(arguments.workers),
                minutes=arguments.minutes,
                small=arguments.small,
            )
            results_file.write(measured, arguments.output)
            print(report.summary(measured))
        if arguments.output == results_file.LATEST:
            report.write_page(results_file.read(results_file.LATEST))
            figures.write_pages()

    return run_command("bench", compare)


def _workers(text: str) -> tuple[str, int]:
    endpoint, _, count = text.partition("=")
    if endpoint not in ENDPOINTS or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: should be one of {', '.join(ENDPOINTS)}, '=', a number")
    return endpoint, int(count)


class Clock:
    """Says how far a run is, and how long it will take.

    Args:
        expected: seconds of the whole, as far as is known.
    """

    def __init__(self, expected: float):
        self._begin = time.monotonic()
        self.expected = expected

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._begin

    def tell(self, *what: str) -> None:
        """Says what comes next."""
        say(f"[minute {self.elapsed / 60:.1f} of about {self.expected / 60:.0f}] {': '.join(what)}")


def run(
    *,
    seconds: float,
    rounds: int,
    store: Path | None,
    checkpoints: tuple[Path, Path] | None,
    workers: Mapping[str, int],
    minutes: float,
    small: bool,
) -> results_file.Results:
    """Prepares, measures all rounds, sums up; the content of `latest.json`.

    Args:
        minutes: of the whole. There is one round at least.

    Raises:
        ClipServeError: ours or sentence-transformers cannot be measured; of another peer, it is noted.
    """
    archives = [] if store is None else [store / f"{name}.mar" for name in ENDPOINTS]
    for archive in archives:
        if not archive.is_file():
            raise PeerError(f"{archive} is missing; run 'make archive', or leave BENCH_STORE out")
    clock = Clock(SMALL_SECONDS if small else 60 * minutes)
    clock.tell("preparing checkpoints, pictures and archives")
    work = WORK / ("small" if small else "full")
    clip, text = checkpoints or _random_checkpoints(work / "checkpoints", small=small)
    pictures = write_pictures(WORK / "pictures")
    pair = load_pair(str(clip), str(text))
    if store is None:
        store = work / "store"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir(parents=True)
        if small:
            # What tuning would time, without its minutes.
            for modality, precision in itertools.product(get_args(Modality), SMALL_PRECISIONS):
                export_encoder(pair, modality, "cpu", precision, store)
        else:
            clock.tell("exporting and tuning precision, workers, threads and batches for this machine")
            tune(pair, "cpu", store, TUNE_SECONDS)
        build_archives(store, None, None)
    prepared = Rounds(store, work, pair, clip, text, pictures, workers, seconds, small=small)
    measured: list[Round] = []
    with prepared as bench:
        expected = [bench.expected_seconds(number) for number in range(1, rounds + 1)]
        if not small:
            clock.expected = clock.elapsed + sum(expected)
        for number in range(1, rounds + 1):
            if measured and clock.elapsed + expected[number - 1] > 60 * minutes:
                clock.tell(f"round {number} would end after {minutes:g} minutes: left out")
                break
            began = clock.elapsed
            of_rounds = f"round {number} of {rounds}"
            measured.append(bench.measure(number, partial(clock.tell, of_rounds)))
            # From what this one has taken to what the others will.
            share = (clock.elapsed - began) / expected[number - 1]
            expected = [share * of for of in expected]
            clock.expected = clock.elapsed + sum(expected[number:])
        machine = _machine()
        found: results_file.Results = {
            "machine": machine,
            "versions": _versions(),
            "settings": {
                "seconds": seconds,
                "rounds": len(measured),
                "checkpoints": "random weights, full size" if checkpoints is None else clip.name,
                "pictures": {
                    key: {"pixels": SIZES[key][0], "count": len(paths), "bytes": _mean_size(paths)}
                    for key, paths in pictures.items()
                },
                "endpoints": {name: archive_settings(store / f"{name}.mar") for name in ENDPOINTS},
                "workers": dict(workers),
                "encoders": bench.encoders,
            },
            "peers": bench.notes,
            "quiet": bench.quiet.facts(),
            **results_file.summarise(measured, machine),
        }
    found["rss_image_worker_mb"] = found["median"]["clipserve"]["rss_mb"]["clip_image"]
    found["cold_start_s"] = found["median"]["clipserve"]["start"]["cold_start_s"]
    found["rounds"] = measured
    found["took_s"] = clock.elapsed
    return found


def _random_checkpoints(folder: Path, *, small: bool) -> tuple[Path, Path]:
    """Writes the checkpoints where they are not there yet: CLIP and text, full size or tiny."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoints-", dir=folder.parent) as name:
            write_pair(Path(name) / "new", tiny=small)
            (Path(name) / "new").rename(folder)
    return folder / "clip-ViT-B-32", folder / "multilingual"


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "native_bf16": cpu_has_native_bf16(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "system": f"{platform.system()} {platform.release()}",
    }


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in VERSIONS} | {"python": platform.python_version()}
    # The environments of peers, which run another transformers.
    for environment, prefix, names in (
        (INFINITY_ENVIRONMENT, "infinity-emb's ", ("infinity-emb", "torch", "transformers")),
        (OPENVINO_ENVIRONMENT, "optimum-intel's ", ("optimum-intel", "nncf", "torch", "transformers")),
    ):
        folders = [str(folder) for folder in environment.glob("lib/*/site-packages")]
        for distribution in metadata.distributions(path=folders):
            if distribution.name in names:
                own = distribution.name in ("torch", "transformers")
                found[f"{prefix if own else ''}{distribution.name}"] = distribution.version
    return found


def _mean_size(paths: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / len(paths)


if __name__ == "__main__":
    # The servers that it started end with it.
    interrupt_on_sigterm()
    sys.exit(main())
