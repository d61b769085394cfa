"""The table of formats, and files that lack their end."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipserve.image_formats import FORMATS
from clipserve.images import decode_image
from tests.clipserve.pictures import (
    LIMITS,
    SMALL,
    assert_as_original,
    clip_preprocessing,
    encoded,
    refused,
    with_alpha,
)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1", "I;16", "F"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_in_every_mode_as_the_original(mode: str, compression: str) -> None:
    """CASES 21."""
    picture = with_alpha(mode) if mode in ("RGBA", "LA") else SMALL
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(SMALL.convert("L"), np.uint16) * 2)
    else:
        picture = picture.convert(mode)
    assert_as_original(encoded(picture, "TIFF", compression=compression), clip_preprocessing(48))


def test_first_page_of_a_tiff() -> None:
    """CASES 21."""
    pages = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert (np.asarray(decode_image(data, LIMITS)) == (255, 0, 0)).all()


def test_tiff_of_16_bits_a_colour() -> None:
    """CASES 21: Pillow takes the upper half of each number."""
    values = np.array([[[0, 32_768, 65_535], [255, 256, 40_000]]], "<u2")
    entries = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 170), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 176), (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12)]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    directory = head + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = directory.ljust(170, b"\0") + struct.pack("<HHH", 16, 16, 16) + values.tobytes()
    assert np.asarray(decode_image(data, LIMITS)).tolist() == [[[0, 128, 255], [0, 1, 156]]]


def test_tiff_of_a_rare_compression() -> None:
    """ATTACKS A5: LZMA takes as much memory as the file asks for."""
    error = refused(encoded(SMALL, "TIFF", compression="lzma"))
    assert (error.code, error.status) == ("unsupported_image_format", 415)
    assert "compression 34925" in error.message


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_as_the_original(mode: str) -> None:
    """CASES 21."""
    picture = with_alpha("RGBA") if mode == "RGBA" else SMALL.convert(mode)
    assert_as_original(encoded(picture, "AVIF"), clip_preprocessing(48))


def test_heic() -> None:
    """CASES 21."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    found = np.asarray(decode_image(encoded(SMALL, "HEIF", quality=90), LIMITS), np.int16)
    assert np.abs(found - np.asarray(SMALL, np.int16)).mean() < 6


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 21: a message that names what to install."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    error = refused(HEIC_HEAD)
    assert (error.code, error.status) == ("unsupported_image_format", 415)
    assert "clipserve[heic]" in error.message


def test_what_is_no_picture_is_told_what_adds_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text with a picture's name: a decoder that is not there is not among what is allowed as it is."""
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        assert "HEIF after 'make heic'" in refused(b"not a picture").message
    pytest.importorskip("pillow_heif")
    assert "HEIF" in refused(b"not a picture").message
    assert "make heic" not in refused(b"not a picture").message


def test_every_format_of_the_table_is_recognised_by_its_files() -> None:
    """CASES 21: the table is complete, and no signature takes another format's file."""
    assert FORMATS["HEIF"].signature.match(HEIC_HEAD)
    for name, format in FORMATS.items():
        if format.plugin:
            continue
        data = encoded(SMALL, name)
        assert [other.name for other in FORMATS.values() if other.signature.match(data)] == [name]
        walked = format.walk(data, 1000)
        assert (walked.width, walked.height) == SMALL.size
        assert all(ending.startswith(".") and ending == ending.lower() for ending in format.endings)


def test_the_table_is_whole_in_a_zipped_archive(tmp_path: Path) -> None:
    """As `zipimport` finds it, where there is no folder to list."""
    root = Path(__file__).parents[2]
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for path in (root / "clipserve").rglob("*.py"):
            archive.write(path, path.relative_to(root))
    code = "from clipserve.image_formats import FORMATS, __file__; print(__file__, *FORMATS)"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "archive.zip")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    file, *names = done.stdout.split()
    assert file.startswith(str(tmp_path / "archive.zip"))
    assert names == list(FORMATS)


# ---- files that lack their end


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("lost", [1, 2])
def test_jpeg_that_lacks_its_end_marker(progressive: bool, restarts: int, lost: int) -> None:
    """CASES 24: the same pixels as with it."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=progressive, restart_marker_blocks=restarts)
    assert data.endswith(b"\xff\xd9")
    found = decode_image(data[:-lost], LIMITS)
    assert found.tobytes() == decode_image(data, LIMITS).tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
def test_jpeg_that_lacks_more_than_its_end_marker(progressive: bool, restarts: int) -> None:
    """CASES 24: grey where pixels should be is no picture; at whatever byte the file ends."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=progressive, restart_marker_blocks=restarts)
    start = data.index(b"\xff\xda") + 14
    for length in sorted({*range(len(data) - 40, len(data) - 4), *range(start, len(data) - 40, 37)}):
        error = refused(data[:length])
        assert (error.code, error.status) == ("invalid_image", 400), length
    for restart in re.finditer(rb"\xff[\xd0-\xd7]", data[start:-4]):
        assert refused(data[: start + restart.start()]).status == 400
        assert refused(data[: start + restart.end()]).status == 400


def test_progressive_jpeg_that_lacks_its_last_scans() -> None:
    """CASES 24: it ends exactly where a scan does."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    tables = [data.rindex(b"\xff\xc4", 0, scan) for scan in scans[2:]]
    for cut in (*tables, *scans[2:]):
        assert refused(data[:cut]).code == "invalid_image", cut


@pytest.mark.parametrize(("format", "lost"), [("PNG", 12), ("GIF", 1)])
def test_other_files_that_lack_their_end(format: str, lost: int) -> None:
    """CASES 24: the end of these carries no pixels."""
    data = encoded(SMALL, format)
    assert decode_image(data[:-lost], LIMITS).tobytes() == decode_image(data, LIMITS).tobytes()
