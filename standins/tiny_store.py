"""`tiny_store.py FOLDER SEED` writes archives of a tiny encoder pair; runs in the server's environment."""

import sys
import tempfile
from pathlib import Path

import transformers

from export_scripts.checkpoints.loading import load_pair
from export_scripts.packages.archive import build_archives
from export_scripts.publish import export_encoder
from standins import checkpoints


def main() -> None:
    """Command line."""
    store, seed = Path(sys.argv[1]), int(sys.argv[2])
    store.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        clip = checkpoints.write_clip(Path(work) / "clip", seed=seed)
        text = checkpoints.write_multilingual(Path(work) / "multilingual", seed=seed + 1)
        pair = load_pair(str(clip), str(text))
        export_encoder(pair, "image", "cpu", "fp32", store)
        export_encoder(pair, "text", "cpu", "fp32", store)
    build_archives(store, None, None)


if __name__ == "__main__":
    main()
