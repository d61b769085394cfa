"""`python -m standins.write_image_encoder FOLDER SHAPE`; runs in the export's environment."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import transformers

from export_scripts.checkpoints.loading import load_pair
from export_scripts.publish import export_encoder
from standins import checkpoints

SHAPES = {
    "narrow": checkpoints.ClipShape(224, 32, 64, 2, 2, 48, 2, 2, 32, 600, 77),
    "vit-b-32": checkpoints.VIT_B_32,
}


def main() -> None:
    """Command line."""
    folder, shape = Path(sys.argv[1]), SHAPES[sys.argv[2]]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        clip = checkpoints.write_clip(Path(work) / "clip", shape)
        export_encoder(load_pair(str(clip)), "image", "cpu", "fp32", folder)


if __name__ == "__main__":
    main()
