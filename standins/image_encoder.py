"""Image encoders of random weights, exported in the export's environment.

`narrow` takes pictures of 224 x 224 as ViT-B/32 does, and has next to no arithmetic.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
EXPORT_PYTHON = ROOT / ".venv" / "bin" / "python"


def export_image_encoder(folder: Path, shape: Literal["narrow", "vit-b-32"]) -> Path:
    """The encoder's file, in `folder`."""
    command = [str(EXPORT_PYTHON), "-m", "standins.write_image_encoder", str(folder), shape]
    subprocess.run(command, cwd=ROOT, check=True)
    return next(folder.glob("*.pt"))
