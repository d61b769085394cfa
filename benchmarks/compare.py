"""Everything side by side in one run: `make bench`, `make bench-small`, `make bench-report`.

Our server, the other servers, sentence-transformers and OpenVINO get the same pictures and sentences on the
same cores, in turns, several rounds of them. Full-size checkpoints (ViT-B/32, and the shape of the
multilingual DistilBERT) with seeded random weights. What counts are the ratios of one run; the absolute
numbers belong to its machine.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import transformers

from benchmarks import ratios, report
from benchmarks.child import PeerError, say
from benchmarks.infinity import INFINITY_ENVIRONMENT
from benchmarks.rounds import Rounds, archive_settings
from benchmarks.workloads import SIZES, write_pictures
from clipserve.command import run_command
from clipserve.endpoints import ENDPOINTS
from clipserve.hardware import cpu_has_native_bf16
from clipserve.interrupt import interrupt_on_sigterm
from export_scripts.checkpoints.loading import load_pair
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from export_scripts.tune import tune
from standins.checkpoints import DISTILBERT_MULTILINGUAL, VIT_B_32, write_clip, write_multilingual

# Checkpoints, pictures and archives; the first two are made once.
WORK = Path(__file__).parents[1] / ".bench"

SECONDS = 2.5
ROUNDS = 3

VERSIONS = (
    "torch",
    "torchserve",
    "transformers",
    "sentence-transformers",
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
    parser.add_argument("--small", action="store_true", help="ours and sentence-transformers only, one round")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page and the plots")
    parser.add_argument("--output", type=Path, default=ratios.LATEST, help="the JSON file")
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
                small=arguments.small,
            )
            ratios.write(measured, arguments.output)
            print(report.summary(measured))
        if arguments.output == ratios.LATEST:
            report.write_page(ratios.read(ratios.LATEST))

    return run_command("bench", compare)


def _workers(text: str) -> tuple[str, int]:
    endpoint, _, count = text.partition("=")
    if endpoint not in ENDPOINTS or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: should be one of {', '.join(ENDPOINTS)}, '=', a number")
    return endpoint, int(count)


def run(
    *,
    seconds: float,
    rounds: int,
    store: Path | None,
    checkpoints: tuple[Path, Path] | None,
    workers: Mapping[str, int],
    small: bool,
) -> ratios.Results:
    """Prepares, measures all rounds, sums up; the content of `latest.json`.

    Raises:
        ClipServeError: ours or sentence-transformers cannot be measured; of another peer, it is noted.
    """
    begin = time.monotonic()
    archives = [] if store is None else [store / f"{name}.mar" for name in ENDPOINTS]
    for archive in archives:
        if not archive.is_file():
            raise PeerError(f"{archive} is missing; run 'make archive', or leave BENCH_STORE out")
    say("preparing checkpoints, pictures and archives")
    clip, text = checkpoints or _random_checkpoints(WORK / "checkpoints")
    pictures = write_pictures(WORK / "pictures")
    if store is None:
        store = WORK / "store"
        shutil.rmtree(store, ignore_errors=True)
        if small:
            # What tuning would choose on most machines, without its minutes.
            export_pair(str(clip), str(text), "cpu", "bf16" if cpu_has_native_bf16() else "fp32", store)
            cores = psutil.cpu_count() or 1
            alone = [name for name, endpoint in ENDPOINTS.items() if endpoint.gives_embeddings]
            workers = {**dict.fromkeys(alone, cores), **workers}
        else:
            say("tuning precision, workers, threads and batches for this machine")
            store.mkdir(parents=True)
            tune(load_pair(str(clip), str(text)), "cpu", store)
        build_archives(store, None, None)
    with Rounds(store, clip, text, pictures, workers, seconds, small=small) as bench:
        measured = [bench.measure(number, rounds) for number in range(1, rounds + 1)]
        found: ratios.Results = {
            "machine": _machine(),
            "versions": _versions(),
            "settings": {
                "seconds": seconds,
                "rounds": rounds,
                "checkpoints": "random weights, full size" if checkpoints is None else clip.name,
                "pictures": {
                    key: {"pixels": SIZES[key][0], "count": len(paths), "bytes": _mean_size(paths)}
                    for key, paths in pictures.items()
                },
                "endpoints": {name: archive_settings(store / f"{name}.mar") for name in ENDPOINTS},
                "workers": dict(workers),
                "encoders": bench.encoders,
                "openvino": bench.openvino,
            },
            "peers": bench.notes,
            **ratios.summarise(measured),
        }
    found["rss_image_worker_mb"] = found["median"]["clipserve"]["rss_mb"]["clip_image"]
    found["cold_start_s"] = found["median"]["clipserve"]["start"]["cold_start_s"]
    found["rounds"] = measured
    found["took_s"] = time.monotonic() - begin
    return found


def _random_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Writes the full-size checkpoints where they are not there yet: CLIP and text."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".checkpoints-", dir=folder.parent) as name:
            write_clip(Path(name) / "new" / "clip-ViT-B-32", VIT_B_32)
            write_multilingual(Path(name) / "new" / "multilingual", DISTILBERT_MULTILINGUAL)
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
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if f in flags],
        "system": f"{platform.system()} {platform.release()}",
    }


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in VERSIONS} | {"python": platform.python_version()}
    # The environment of a peer, which runs another transformers.
    folders = [str(folder) for folder in INFINITY_ENVIRONMENT.glob("lib/*/site-packages")]
    for distribution in metadata.distributions(path=folders):
        if distribution.name in ("infinity-emb", "torch", "transformers"):
            prefix = "" if distribution.name == "infinity-emb" else "infinity-emb's "
            found[f"{prefix}{distribution.name}"] = distribution.version
    return found


def _mean_size(paths: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / len(paths)


if __name__ == "__main__":
    # The servers that it started end with it.
    interrupt_on_sigterm()
    sys.exit(main())
