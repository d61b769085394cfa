"""Look-up tables of a loaded encoder, left in its file: a worker holds what its texts have looked up."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Of the weights of a supported encoder only embedding tables are as large: 119,547 tokens of the multilingual
# DistilBERT take 367 MB in float32, SigLIP 2's 256,000 take 786. What a matrix product reads is read at every
# pass, and has been packed in another form.
LARGE_BYTES = 64_000_000


def map_large_weights(path: Path, module: torch.jit.ScriptModule) -> None:
    """Replaces large weights by the file's own pages, which all processes that read it share.

    A weight whose bytes do not stand in the file as they are stays.

    Args:
        path: what the module was loaded from; it must stay as it is while the module is used.
    """
    large = [p for p in module.parameters() if p.nbytes >= LARGE_BYTES and p.is_contiguous()]
    records = list(_large_records(path)) if large else []
    for parameter in large:
        for record in records:
            if record.nbytes == parameter.nbytes:
                mapped = record.view(parameter.dtype).view(parameter.shape)
                if torch.equal(mapped, parameter):
                    parameter.data = mapped
                    break


def _large_records(path: Path) -> Iterator[Tensor]:
    """The large uncompressed records of a zip file, each uint8 `[bytes]`: memory goes for what is read."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for info in archive.infolist():
            if info.file_size < LARGE_BYTES or info.compress_type != zipfile.ZIP_STORED:
                continue
            # The local header's own lengths: PyTorch pads its extra field so that the data is aligned.
            stream.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", stream.read(4))
            start = info.header_offset + 30 + name + extra
            # Copied on write, which nobody does: PyTorch wants memory that it may write.
            yield torch.from_numpy(np.memmap(path, np.uint8, "c", start, (info.file_size,)))
