"""Exported encoders in C++: what DJL, Triton and any other libtorch program does with them.

The program is built against the running torch's own headers and libraries, once; `build/cpp` keeps it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipserve.encoder_spec import Modality, Precision
from export_scripts.checkpoints.loading import load_pair
from export_scripts.publish import export_encoder
from tests.golden import OTHER_PIXELS, flip_golden, save_golden_inputs

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cpp"

Golden = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]

# As tests/export_scripts/test_publish.py has it: torch's own filter for warnings about its own code.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


def _compiles(source: str) -> bool:
    compiler = shutil.which("c++")
    if compiler is None:
        return False
    command = [compiler, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, check=False, capture_output=True, text=True, input=source).returncode == 0


@pytest.fixture(scope="module")
def golden() -> Golden:
    """Runs the program on an encoder and its golden input."""
    if shutil.which("cmake") is None or not _compiles("#include <nlohmann/json.hpp>"):
        pytest.skip("no CMake, C++ compiler or JSON library: apt-get install cmake g++ nlohmann-json3-dev")
    if torch.version.cuda is not None:
        pytest.skip("torch is a CUDA build, whose CMake package asks for the whole CUDA toolkit")
    for command in (
        ["cmake", "-S", str(Path(__file__).parent), "-B", str(BUILD), "-D", "CMAKE_BUILD_TYPE=Release",
         "-D", f"CMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"],
        ["cmake", "--build", str(BUILD)],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(encoder: Path, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(BUILD / "golden"), str(encoder), str(save_golden_inputs(encoder, folder))]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("layout", "modality"),
    [
        ("multilingual", "image"),
        ("clip", "text"),
        ("multilingual", "text"),
        ("m_clip_bert", "text"),
        ("m_clip_xlm_roberta", "text"),
    ],
)
def test_golden_embedding_in_cpp(
    layout: str,
    modality: Modality,
    precision: Precision,
    golden: Golden,
    clip_folder: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    pair = load_pair(str(clip_folder), str(request.getfixturevalue(f"{layout}_folder")))
    spec = export_encoder(pair, modality, "cpu", precision, tmp_path)
    done = golden(tmp_path / f"{spec.stem}.pt", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [[modality, precision, "batch", n] for n in ("1", "3")]


def test_other_embedding_is_found(golden: Golden, text_path: Path, tmp_path: Path) -> None:
    done = golden(flip_golden(text_path, tmp_path / "flipped.pt"), tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cosine -1.00000000" in done.stdout
    assert "beyond the bound" in done.stderr


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
def test_other_pixels_are_refused(pixels: Tensor, golden: Golden, image_path: Path, tmp_path: Path) -> None:
    """CASES 16, in C++."""
    inputs = tmp_path / "inputs.pt"
    torch.save([pixels], inputs)
    command = [str(BUILD / "golden"), str(image_path), str(inputs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pixel_values must be uint8 [N, 3, 48, 48], RGB, 0 to 255" in done.stderr
    assert done.stdout == ""


def test_no_encoder(golden: Golden, image_path: Path, tmp_path: Path) -> None:
    inputs = save_golden_inputs(image_path, tmp_path)
    done = subprocess.run(
        [str(BUILD / "golden"), str(inputs), str(inputs)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"golden: {inputs}: ")
