"""CASES 20, ATTACKS A6: the memory that decoding takes, for the largest picture of each format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits
from reliability.largest import LARGEST

MEASURE = """
import sys
from pathlib import Path
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.encoder_spec import ImagePreprocessing
from clipserve.memory import bound_free_memory

def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return 1024 * int(line.split()[1])

bound_free_memory()
limits, preprocessing = ImageLimits(), ImagePreprocessing(224, 224, 224, "bicubic", (0.0,) * 3, (1.0,) * 3)
small, data = (Path(name).read_bytes() for name in sys.argv[1:])
decode_image(small, limits, shortest_edge=224)  # imports what this format needs
before = status("VmRSS")
# With no draft by choice: the largest that a caller can ask for.
image = decode_image(data, limits, shortest_edge=224)
preprocess(image, preprocessing, limits)
print(status("VmHWM") - before, image.width * image.height)
"""

# What the process itself holds in between: Python's objects, freed memory that stays, the file twice.
SLACK_BYTES = 12_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", LARGEST)
def test_peak(name: str, tmp_path: Path) -> None:
    format = name.split(" ")[0]
    if plugin := FORMATS[format].plugin:
        pytest.importorskip(plugin.module)
    data = LARGEST[name]()
    assert len(data) <= ImageLimits().max_bytes
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "small").write_bytes(small(format))
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    peak, pixels = map(int, found.stdout.split())
    assert peak <= ImageLimits().max_memory + 2 * len(data) + SLACK_BYTES
    # And it is the largest: little of one of the limits is left. Of JPEGs, what does not fit is made smaller.
    most = ImageLimits().max_structures
    assert pixels > 6_000_000 or FORMATS[format].walk(data, most).structures > 0.9 * most


def small(format: str) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (300, 300)).save(stream, format)
    return stream.getvalue()


def test_every_format_is_measured() -> None:
    assert {name.split(" ")[0] for name in LARGEST} == set(FORMATS)
