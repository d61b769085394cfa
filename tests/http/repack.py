"""Changes files inside an archive or an encoder file, as an attacker or an accident would."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from clipserve.archive_files import SUMS_FILE

Edit = Callable[[bytes], bytes]


def repack(source: Path, target: Path, edits: Mapping[str, Edit], *, fix_sums: bool = False) -> Path:
    """Copies a zip file with some members changed.

    Args:
        edits: by the end of the member's name.
        fix_sums: bring SHA256SUMS up to date, as one does who rebuilds the archive.
    """
    with zipfile.ZipFile(source) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for ending, edit in edits.items():
        (name,) = [name for name in members if name.endswith(ending)]
        changed = edit(members[name])
        assert changed != members[name]
        members[name] = changed
    if fix_sums:
        lines = [line.partition("  ")[2] for line in members[SUMS_FILE].decode().splitlines()]
        sums = [f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in lines]
        members[SUMS_FILE] = "".join(sums).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target
