"""Lays exported encoders out as folders that the Deep Java Library loads: `make export FORMAT=djl`.

`docs/djl.md` has the Java for both encoders.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from clipserve.encoder_spec import read_extra_file, read_spec
from clipserve.folders import publish, staged
from clipserve.store import check_format
from export_scripts import zips
from export_scripts.packages.folders import link_or_copy

FOLDER = "djl"
PROPERTIES_FILE = "serving.properties"


def write_djl(encoder: Path, store: Path) -> Path:
    """Writes `store/djl/STEM/` and `store/djl/STEM.zip` of a TorchScript encoder.

    The folder holds the encoder itself, `serving.properties`, `spec.json`, and for texts `tokenizer.json`;
    the zip holds the same, without a folder around it. Equal encoders give equal zips.

    Returns:
        The folder's path.

    Raises:
        SpecError: `encoder` is no readable encoder file, or not a TorchScript file of ours, which is the only
            format that DJL's PyTorch engine loads and the only one that these folders' translators call.
    """
    spec = read_spec(encoder)
    check_format(encoder, spec, ["torchscript"])
    with staged(store / FOLDER) as work:
        made = work / spec.stem
        made.mkdir()
        link_or_copy(encoder, made / spec.file_name)
        (made / PROPERTIES_FILE).write_text(_properties(spec.stem), encoding="ascii")
        for name in spec.extra_files:
            (made / name).write_bytes(read_extra_file(encoder, name))
        archive = work / f"{spec.stem}.zip"
        _zip(made, archive)
        folder = store / FOLDER / spec.stem
        publish(made, folder)
        archive.replace(folder.with_name(archive.name))
    return folder


def djl_encoders(store: Path) -> list[Path]:
    """The encoder files in the folders that `write_djl` made, sorted."""
    return sorted(path for path in (store / FOLDER).glob("[!.]*/*.pt") if path.stem == path.parent.name)


def _properties(stem: str) -> str:
    # A properties file is Latin-1 to DJL Serving and UTF-8 to DJL: so it is ASCII, with Java's escapes. The
    # name is needed where DJL Serving loads the folder under another name.
    name = "".join(
        chr(unit) if unit < 0x80 and unit != ord("\\") else f"\\u{unit:04x}" for unit in _utf16_units(stem)
    )
    return f"engine=PyTorch\noption.modelName={name}\noption.mapLocation=true\n"


def _utf16_units(text: str) -> list[int]:
    units = text.encode("utf-16-be")
    return [units[i] << 8 | units[i + 1] for i in range(0, len(units), 2)]


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in sorted(folder.iterdir()):
            with path.open("rb") as reader:
                zips.add(target, path.name, reader, path.stat().st_size)
