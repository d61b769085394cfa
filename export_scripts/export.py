"""Exports both encoders of a checkpoint pair into the model store: `make export`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import transformers

from clipserve.command import run_command
from clipserve.encoder_spec import PARITY_BOUNDS, SUFFIXES, Device, EncoderSpec, Format, Modality, Precision
from export_scripts.checkpoints.licenses import license_lines
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats import FORMATS
from export_scripts.packages.contracts import CONTRACTS
from export_scripts.packages.conventions import Contract
from export_scripts.packages.djl import write_djl
from export_scripts.packages.wrapped import check_contract, export_wrapped
from export_scripts.publish import TIMED_BATCHES, Made, check_device, export_encoders

STORE = Path(__file__).parents[1] / "model_store"
DEFAULT_MODEL = "clip-ViT-B-32"

# A DJL folder is made of a TorchScript file.
DJL = "djl"

Tell = Callable[[Modality, Made | None], None]


def export_pair(
    model: str,
    text_model: str | None,
    device: Device,
    precision: Precision | None,
    store: Path,
    *,
    file_format: Format = "torchscript",
    normalized: bool = True,
    packed: bool = True,
    allow_int8: bool = False,
) -> list[EncoderSpec]:
    """Exports the image and the text encoder of a pair; see `load_pair` and `export_encoders`.

    Raises:
        ExportError: cannot be made as asked; what was published before stays.
    """
    modalities = get_args(Modality)
    # Before minutes of loading are spent.
    check_device(device, precision, file_format)
    pair = _load(model, text_model, 1 + len(modalities))
    return export_encoders(
        pair,
        modalities,
        device,
        precision,
        store,
        file_format=file_format,
        normalized=normalized,
        packed=packed,
        allow_int8=allow_int8,
        tell=_tell(FORMATS[file_format].doing, modalities),
    )


def export_pair_for(
    contract: Contract,
    model: str,
    text_model: str | None,
    device: Device,
    precision: Precision | None,
    store: Path,
    *,
    normalized: bool = True,
) -> list[Path]:
    """Exports a pair for another program; see `load_pair` and `export_wrapped`.

    Raises:
        ExportError: cannot be made as asked; what was published before stays.
    """
    modalities = tuple(contract.conventions)
    check_contract(contract, device, precision)
    pair = _load(model, text_model, 1 + len(modalities))
    tell = _tell("tracing", modalities)
    return export_wrapped(contract, pair, device, precision, store, normalized=normalized, tell=tell)


def _load(model: str, text_model: str | None, steps: int) -> CheckpointPair:
    """Loads a pair, and says so as the first of some steps."""
    print(f"[1/{steps}] loading {model}{f' with {text_model}' if text_model else ''}", flush=True)
    pair = load_pair(model, text_model)
    # Names that were chosen by default are told as well.
    print(f"      image encoder of {pair.image.name}, text encoder of {pair.text.name}", flush=True)
    for line in license_lines(pair):
        print(f"      {line}", flush=True)
    if pair.doubt is not None:
        print(f"export: warning: {pair.doubt}", file=sys.stderr, flush=True)
    return pair


def _tell(doing: str, modalities: Sequence[Modality]) -> Tell:
    """Says what becomes of each encoder.

    Args:
        doing: what is done with one, in one word.
        modalities: in the order in which they are exported.
    """
    start = time.monotonic()

    def tell(modality: Modality, made: Made | None) -> None:
        nonlocal start
        if made is None:
            start = time.monotonic()
            step = f"[{2 + modalities.index(modality)}/{1 + len(modalities)}]"
            print(f"{step} {modality} encoder: {doing}, reloading, comparing", flush=True)
            return
        certificate = made.spec.certificate
        if made.seconds:
            timed = ", ".join(
                f"{name} {' and '.join(f'{1000 * spent:.1f}' for spent in of_batches)} ms"
                for name, of_batches in made.seconds.items()
            )
            batches = " and ".join(map(str, TIMED_BATCHES))
            print(f"      batches of {batches}: {timed}; {made.spec.precision} is kept", flush=True)
        print(
            f"      {made.path.name}  {made.path.stat().st_size / 1e6:.1f} MB  "
            f"{certificate} over "
            f"{len(certificate.cases)} cases (bound {certificate.bound})  "
            f"{time.monotonic() - start:.1f} s",
            flush=True,
        )
        if (plan := made.spec.quantization) is not None:
            left = f"; in half precision: {', '.join(plan.half)}" if plan.half else ""
            share = f"{plan.int8_share:.0%} of the multiplications in int8"
            print(f"      {share}, smoothing {plan.smoothing:g}{left}", flush=True)

    return tell


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts export", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="'demo', a hub name or a folder")
    parser.add_argument("--text-model", help="hub name or folder of the text encoder")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", *PARITY_BOUNDS])
    parser.add_argument("--int8", choices=["allow"], help="let auto take int8 too")
    parser.add_argument("--format", default="torchscript", choices=[*SUFFIXES, DJL, *CONTRACTS])
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--no-normalize", action="store_true", help="leave L2 normalising to the caller")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    return run_command("export", lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> None:
    asked = (
        arguments.model,
        arguments.text_model,
        arguments.device,
        None if arguments.precision == "auto" else arguments.precision,
        arguments.store,
    )
    normalized = not arguments.no_normalize
    if arguments.format in CONTRACTS:
        published = export_pair_for(CONTRACTS[arguments.format], *asked, normalized=normalized)
    elif arguments.format == DJL:
        specs = export_pair(*asked, normalized=normalized, packed=False)
        folders = [write_djl(arguments.store / spec.file_name, arguments.store) for spec in specs]
        published = [path for folder in folders for path in (folder, folder.with_name(f"{folder.name}.zip"))]
    else:
        allow_int8 = arguments.int8 == "allow"
        export_pair(*asked, file_format=arguments.format, normalized=normalized, allow_int8=allow_int8)
        published = []
    for path in published:
        print(f"      {path.relative_to(arguments.store)}")
