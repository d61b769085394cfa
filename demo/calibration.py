"""Draws and writes what int8 encoders are calibrated on: `python -m demo.calibration`.

Files, since an export reads them for any checkpoint and draws nothing itself. None of them is among what
judges an export, its certificate's inputs (`export_scripts.parity.inputs`).
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from demo.captions import caption, load_vocabularies
from demo.scenes import draw
from demo.world import COUNTS, SETTINGS, THINGS, Scene

FOLDER = Path(__file__).parent / "calibration"

SEED = 22
PICTURES_A_SETTING = 3
SENTENCES_A_LANGUAGE = 2
SIZE = (320, 240)
QUALITY = 85


def write(folder: Path) -> None:
    """Writes pictures of every setting, and sentences in every language."""
    rng = Random(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for setting in SETTINGS:
        for thing in rng.sample(THINGS, PICTURES_A_SETTING):
            scene = Scene(setting, thing, rng.choice(COUNTS))
            draw(scene, SEED, SIZE).save(folder / f"{scene.name}.jpg", quality=QUALITY)
    scenes = [Scene(setting, thing, count) for setting in SETTINGS for thing in THINGS for count in COUNTS]
    sentences = [
        caption(vocabulary, scene, rng)
        for vocabulary in load_vocabularies().values()
        for scene in rng.sample(scenes, SENTENCES_A_LANGUAGE)
    ]
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
