"""Our server beside sentence-transformers in process, same inputs, same cores, in turns: `make bench`.

Full-size checkpoints (ViT-B/32 and the multilingual DistilBERT's shape) with seeded random weights. What
counts are the ratios, measured side by side in one run; the absolute numbers belong to that run's machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer

from clipserve.client import Client
from clipserve.encoder import cpu_has_native_bf16
from clipserve.errors import ClipServeError
from demo.captions import load_vocabularies
from demo.world import RUNNING_EXAMPLE
from export_scripts.archive import build_archives
from export_scripts.export import export_pair
from export_scripts.parity_inputs import photograph_like
from serving.server import private_server
from tests.checkpoints import DISTILBERT_MULTILINGUAL, VIT_B_32, write_clip, write_multilingual

RESULTS = Path(__file__).parent / "results" / "latest.json"

PHOTOGRAPH = (640, 480)  # pixels
CLIENTS = (1, 8, 32)
ROUNDS = 3

Measured = dict[str, list[float]]


def closed_loop(ask: Callable[[int], object], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Each client asks again as soon as it is answered.

    Args:
        ask: one request; its argument counts up.
        clients: threads that ask.
        seconds: how long.

    Returns:
        Requests per second, and the latency of each in seconds.
    """
    latencies: list[float] = []
    failures: list[BaseException] = []
    start = time.perf_counter()
    deadline = start + seconds

    def run(number: int) -> None:
        count = number
        try:
            while (begin := time.perf_counter()) < deadline:
                ask(count)
                latencies.append(time.perf_counter() - begin)
                count += clients
        except ClipServeError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(latencies) / (time.perf_counter() - start), latencies


def measure_round(
    client: Client, originals: dict[str, SentenceTransformer], photographs: Sequence[bytes], seconds: float
) -> dict[str, float]:
    """One round of every measurement, ours and theirs in turns."""
    sentences = [v.captions(scene)[0] for v in load_vocabularies().values() for scene in RUNNING_EXAMPLE]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs]
    values: dict[str, float] = {"load_average": os.getloadavg()[0]}
    kinds: dict[str, tuple[Callable[[int], object], Sequence[object]]] = {
        "image": (lambda i: client.embed_images([photographs[i % len(photographs)]]), pictures),
        "text": (lambda i: client.embed_texts([sentences[i % len(sentences)]]), sentences),
    }
    for kind, (ask, inputs) in kinds.items():
        for clients in CLIENTS:
            rate, latencies = closed_loop(ask, clients, seconds)
            values[f"{kind}_http_c{clients}_per_s"] = rate
            values[f"{kind}_http_c{clients}_p50_ms"] = 1000 * statistics.median(latencies)
            values[f"{kind}_http_c{clients}_p95_ms"] = 1000 * float(np.quantile(latencies, 0.95))
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            originals[kind].encode(list(inputs)[:32], batch_size=32, show_progress_bar=False)
            done += len(inputs[:32])
        values[f"{kind}_sentence_transformers_per_s"] = done / (time.perf_counter() - start)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 done, 1 a known error in one line on stderr, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rng = np.random.default_rng(0)
    photographs = []
    for _ in range(32):
        buffer = io.BytesIO()
        photograph_like(rng, *PHOTOGRAPH).save(buffer, "JPEG", quality=90)
        photographs.append(buffer.getvalue())
    try:
        with tempfile.TemporaryDirectory(prefix="clipserve-bench-") as name:
            work = Path(name)
            clip = write_clip(work / "clip-ViT-B-32", VIT_B_32)
            text = write_multilingual(work / "multilingual", DISTILBERT_MULTILINGUAL)
            specs = export_pair(str(clip), str(text), "cpu", None, work / "store")
            build_archives(work / "store", None, None)
            originals = {
                "image": SentenceTransformer(str(clip), device="cpu"),
                "text": SentenceTransformer(str(text), device="cpu"),
            }
            torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
            server = private_server(work / "store", work / "server")
            try:
                begin = time.perf_counter()
                server.start()
                server.wait_ready()
                cold_start = time.perf_counter() - begin
                with server.client() as client:
                    measure_round(client, originals, photographs, 1.0)  # warms both up
                    rounds = [
                        measure_round(client, originals, photographs, arguments.seconds)
                        for _ in range(ROUNDS)
                    ]
            finally:
                server.stop()
    except ClipServeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    measured: Measured = {key: [r[key] for r in rounds] for key in rounds[0]}
    ratios = {
        f"{kind}_http_c{clients}_vs_sentence_transformers": statistics.median(
            r[f"{kind}_http_c{clients}_per_s"] / r[f"{kind}_sentence_transformers_per_s"] for r in rounds
        )
        for kind in ("image", "text")
        for clients in CLIENTS
    }
    variants = [spec.stem for spec in specs]
    result = {
        "machine": {"cores": psutil.cpu_count(), "native_bf16": cpu_has_native_bf16()},
        "variants": variants,
        "cold_start_s": cold_start,
        "measured": measured,
        "ratios": ratios,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for key, values in measured.items():
        print(f"{key:<40} {statistics.median(values):9.1f}  ({min(values):.1f} to {max(values):.1f})")
    for key, ratio in ratios.items():
        print(f"{key:<50} {ratio:.2f}")
    print(f"cold start to first correct vectors: {cold_start:.1f} s; variants: {', '.join(variants)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
