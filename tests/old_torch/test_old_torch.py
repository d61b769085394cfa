"""Today's encoder files in the oldest PyTorch that opens them: `make test-old-torch`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipserve.encoder_spec import Modality, Precision
from export_scripts.checkpoints.loading import load_pair
from export_scripts.publish import export_encoder
from standins import tiny
from tests.conftest import FolderOf
from tests.golden import OTHER_PIXELS, flip_golden, save_golden_inputs
from tests.old_torch.torches import OLDEST, needs, python_of

OLD_PYTHON = python_of(OLDEST)

pytestmark = [
    needs(OLDEST),
    # As tests/export_scripts/test_publish.py has it: torch's own filter for warnings about its own code.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional"),
]


def read(*encoders: Path) -> subprocess.CompletedProcess[str]:
    """Has the old torch read them; their golden inputs are put beside them."""
    command = [str(OLD_PYTHON), "-I", str(Path(__file__).with_name("read_encoder.py"))]
    for encoder in encoders:
        command += [str(encoder), str(save_golden_inputs(encoder, encoder.parent))]
    return subprocess.run(command, check=False, capture_output=True, text=True)


# Those of which the other precisions are read, too.
OFTEN = ("clip", "multilingual", "m-clip-bert", "m-clip-xlm-r")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_golden_embeddings_in_the_old_torch(
    precision: Precision, folder_of: FolderOf, tmp_path: Path
) -> None:
    """Of every layout."""
    encoders = []
    for layout in tiny.ALL if precision == "fp32" else OFTEN:
        own = layout in tiny.PAIRS
        pair = load_pair(str(folder_of(layout if own else "clip")), str(folder_of(layout)))
        modalities: list[Modality] = ["image", "text"] if own else ["text"]
        for modality in modalities:
            spec = export_encoder(pair, modality, "cpu", precision, tmp_path / layout)
            encoders.append(tmp_path / layout / spec.file_name)
    done = read(*encoders)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    line = re.compile(
        rf"torch {re.escape(OLDEST)}\S*: (image|text) {precision} batch [13] max-abs \S+ cosine \S+"
    )
    assert len(line.findall(done.stdout)) == 2 * len(encoders), done.stdout


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
def test_other_pixels_are_refused(pixels: Tensor, image_path: Path, tmp_path: Path) -> None:
    """CASES 16, in the old PyTorch."""
    inputs = tmp_path / "inputs.pt"
    torch.save([pixels], inputs)
    reader = Path(__file__).with_name("read_encoder.py")
    done = subprocess.run(
        [str(OLD_PYTHON), "-I", str(reader), str(image_path), str(inputs)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pixel_values must be uint8 [N, 3, 48, 48], RGB, 0 to 255" in done.stdout + done.stderr
    assert "cosine" not in done.stdout


def test_other_embedding_is_found(text_path: Path, tmp_path: Path) -> None:
    done = read(flip_golden(text_path, tmp_path / "flipped.pt"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cosine -1.00000000 BEYOND THE BOUND" in done.stdout
