"""`python -m scale.bulk.estimate`: machines, hours, bytes and cost; the table of docs/scale-estimate.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from clipserve.command import run_command

PICTURES = (1_000_000, 100_000_000, 10_000_000_000)


@dataclass(frozen=True)
class Assumptions:
    """Every number that the table is computed from; each is an option of the command.

    Attributes:
        decode_ms: CPU time to read and decode a picture of 640 x 480 and make its thumbnail.
        encode_ms: CPU time of ViT-B/32 in fp32.
        efficiency: of the job beside plain processes.
        gpu_images_per_s: of one GPU; 0 for encoding on CPUs.
        machine_cores: of a machine.
        machine_gpus: of a machine, where there is a GPU rate.
        hours: in which it is to be done.
        picture_bytes: of an encoded picture.
        vector_bytes: of an embedding, 512 float32.
        thumbnail_bytes: of a thumbnail.
        fields_bytes: of all other columns.
        index_bytes: of the ANN index, for each vector.
        index_core_s: to build the index and compact the table, for a million vectors.
        driver_bytes: of the driver's memory, for each picture that the table holds.
        core_hour_usd: price of a core.
        gpu_hour_usd: price of a GPU with its share of a machine.
        million_gets_usd: price of a million requests to an object store.
        tar_bytes: of a webdataset shard.
        tb_month_usd: price of a terabyte in an object store for a month.
    """

    decode_ms: float = 10.0
    encode_ms: float = 122.0
    efficiency: float = 0.85
    gpu_images_per_s: float = 0.0
    machine_cores: float = 16
    machine_gpus: float = 1
    hours: float = 24
    picture_bytes: float = 150_000
    vector_bytes: float = 2_048
    thumbnail_bytes: float = 9_000
    fields_bytes: float = 200
    index_bytes: float = 345
    index_core_s: float = 178
    driver_bytes: float = 430
    core_hour_usd: float = 0.04
    gpu_hour_usd: float = 2.5
    million_gets_usd: float = 0.4
    tar_bytes: float = 1e9
    tb_month_usd: float = 23


def table(given: Assumptions) -> str:
    """Markdown, a column for each size of collection."""
    columns = [_column(count, given) for count in PICTURES]
    lines = [
        f"| pictures | {' | '.join(f'{count:,}' for count in PICTURES)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name in columns[0]:
        lines.append(f"| {name} | {' | '.join(column[name] for column in columns)} |")
    return "\n".join(lines)


def _column(count: int, given: Assumptions) -> dict[str, str]:
    column: dict[str, str] = {}
    row_bytes = given.vector_bytes + given.thumbnail_bytes + given.fields_bytes
    if given.gpu_images_per_s:
        gpu_hours = count / given.gpu_images_per_s / given.efficiency / 3600
        cores = given.gpu_images_per_s * given.decode_ms / 1000
        column["GPU-hours"] = _number(gpu_hours)
        column["cores that decode for one GPU"] = _number(cores)
        machines = gpu_hours / given.hours / given.machine_gpus
        compute_usd = gpu_hours * given.gpu_hour_usd
    else:
        core_hours = count * (given.decode_ms + given.encode_ms) / 1000 / given.efficiency / 3600
        column["core-hours"] = _number(core_hours)
        machines = core_hours / given.hours / given.machine_cores
        compute_usd = core_hours * given.core_hour_usd
    column[f"machines, for {given.hours:g} h"] = _number(-(-machines // 1))
    column["hours on one machine"] = _number(machines * given.hours)
    column["read"] = _bytes(count * given.picture_bytes)
    column["read, from all machines together"] = (
        _bytes(count * given.picture_bytes / given.hours / 3600) + "/s"
    )
    column["requests, a file a picture"] = _number(count)
    column["requests, tar shards"] = _number(count * given.picture_bytes / given.tar_bytes)
    column["shards of 256"] = _number(count / 256)
    column["table"] = _bytes(count * row_bytes)
    column["of that, vectors"] = _bytes(count * given.vector_bytes)
    column["ANN index, in memory when searched"] = _bytes(count * given.index_bytes)
    column["index built, on one machine"] = (
        _number(count / 1e6 * given.index_core_s / given.machine_cores / 3600) + " h"
    )
    column["driver's memory, when run again"] = _bytes(count * given.driver_bytes)
    column["cost: compute"] = _usd(compute_usd)
    column["cost: requests, a file a picture"] = _usd(count / 1e6 * given.million_gets_usd)
    column["cost: table, a month"] = _usd(count * row_bytes / 1e12 * given.tb_month_usd)
    return column


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


def _usd(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m scale.bulk.estimate", description=__doc__)
    for item in fields(Assumptions):
        option = "--" + item.name.replace("_", "-")
        parser.add_argument(option, type=float, default=item.default, help=f"{item.default:g}")
    arguments = parser.parse_args(argv)
    return run_command("estimate", lambda: print(table(Assumptions(**vars(arguments)))))


if __name__ == "__main__":
    sys.exit(main())
