"""`python -m standins.write_open_clip FOLDER`: a folder of each kind in open_clip's layout, by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import transformers

from standins.open_clip import KINDS, VARIANTS, write_open_clip


def main() -> None:
    """Command line."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, kind in (KINDS | VARIANTS).items():
        write_open_clip(Path(sys.argv[1]) / name, kind)


if __name__ == "__main__":
    main()
