"""`python -m scale.bulk`: embed a collection on a Ray cluster; what `make bulk` calls."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import ray

from clipserve.arguments import Parser, path, whole
from clipserve.command import run_command
from clipserve.encoder_spec import read_spec
from clipserve.interrupt import interrupt_on_sigterm, say_what_ends_it
from clipserve.store import Store
from pictures.exclusions import add_exclude_option
from scale.bulk.cluster import connect
from scale.bulk.sources import find_source

TABLE = Path(".search/pictures")
STORE = Path("model_store")

# (encoder CPUs, encoder GPUs, decoding CPUs). On CPUs the two take turns on each core.
CPU_SHARES = (0.75, 0.0, 0.25)
GPU_SHARES = (1.0, 1.0, 1.0)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m scale.bulk", description=__doc__)
    parser.add_argument(
        "images",
        type=_images,
        help="folder of pictures, Parquet or tar files; or one such file; seen by every node",
    )
    parser.add_argument(
        "--table", type=path, default=TABLE, help=f"folder of the table ({TABLE}), seen likewise"
    )
    parser.add_argument("--column", help="of the pictures' bytes in Parquet (the only one of bytes)")
    add_exclude_option(parser)
    encoder = parser.add_argument_group("the encoder, at the same path on every node")
    encoder.add_argument("--encoder", type=path, help="traced image encoder, .pt (the one in --store)")
    encoder.add_argument("--store", type=path, default=STORE, help=f"folder of encoders ({STORE})")
    encoder.add_argument("--model", help="its id, where --store holds several")
    encoder.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="to choose in --store (cpu)"
    )
    encoder.add_argument(
        "--batch-size", type=whole(1, 1_000_000), default=32, help="pictures of one forward pass (32)"
    )
    cluster = parser.add_argument_group("the cluster")
    cluster.add_argument(
        "--ray-address", metavar="HOST:PORT", help="of a running Ray, or auto (starts one here)"
    )
    cluster.add_argument(
        "--encoders", type=whole(1, 1_000_000), help="actors at most (as many as there is room for)"
    )
    cluster.add_argument("--encoder-cpus", type=_share, help="of each (0.75; with a GPU 1)")
    cluster.add_argument("--encoder-gpus", type=_share, help="of each (0; of an encoder for cuda 1)")
    cluster.add_argument("--decode-cpus", type=_share, help="of each decoding task (0.25; with a GPU 1)")
    cluster.add_argument(
        "--shard-size", type=whole(1, 1_000_000), default=256, help="pictures of a shard (256)"
    )
    cluster.add_argument(
        "--object-store-mb",
        type=whole(1, 1_000_000),
        default=1024,
        help="of a Ray that is started here (1024)",
    )
    return parser


def _images(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "no pictures are named; name a folder, or a Parquet or tar file: make bulk IMAGES=folder"
        )
    return path(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is more than 0, up to 1024")
    return value


def _encoder(arguments: argparse.Namespace) -> Path:
    if arguments.encoder is not None:
        return Path(arguments.encoder).absolute()
    encoders = Store.read(arguments.store).model(arguments.model)
    return encoders.best("image", arguments.device).path.absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    arguments = _parser().parse_args(argv)
    say_what_ends_it(sys.stderr)

    def embed() -> None:
        source = find_source(arguments.images, arguments.column, arguments.exclude)
        encoder = _encoder(arguments)
        shares = GPU_SHARES if read_spec(encoder).device == "cuda" else CPU_SHARES
        asked = (arguments.encoder_cpus, arguments.encoder_gpus, arguments.decode_cpus)
        cpus, gpus, decode = (given or usual for given, usual in zip(asked, shares, strict=True))
        connect(arguments.ray_address, arguments.object_store_mb << 20)
        # Ray put a handler of its own in the place of this one.
        interrupt_on_sigterm()
        try:
            # LanceDB's, and so this job's, import must come after Ray has forked, see `scale.bulk.cluster`.
            from scale.bulk.job import Pool, print_report, run_job

            pool = Pool(arguments.encoders, cpus, gpus, decode, arguments.batch_size, arguments.shard_size)
            print_report(run_job(source, arguments.table.absolute(), encoder, pool))
        finally:
            ray.shutdown()

    return run_command("bulk", embed, "interrupted; the same command goes on from here")


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
