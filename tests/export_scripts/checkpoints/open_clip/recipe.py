"""Makes golden.json: what open_clip itself gives for the stand-ins, from sentences and the bytes of pictures.

    .venv/bin/python -m standins.write_open_clip /tmp/open-clip
    python3 -m venv /tmp/of-open-clip
    /tmp/of-open-clip/bin/python -m pip install -r tests/export_scripts/checkpoints/open_clip/requirements.txt
    /tmp/of-open-clip/bin/python tests/export_scripts/checkpoints/open_clip/recipe.py /tmp/open-clip

Two things are not as published, for the stand-ins are small: the byte-level BPE's merges, which open_clip
carries in its package, are the folder's; and timm's model of a name is told its width, depth and image size,
and that this is the size at which its places count whole steps.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file

GOLDEN = Path(__file__).with_name("golden.json")

SENTENCES = [
    "",
    "   ",
    "a",
    "Two Dogs in the SNOW!",
    "a cat, on a table (not under it)…",
    "snow_man's  hat\t\n- #3",
    "it's a dog's life, they're here; we've seen 'em",
    "ÉTÉ, İstanbul, STRASSE ß",
    "ΔΎΟ ΣΚΎΛΟΣ, Σ ΟΔΥΣΣΈΑΣ, Σ'ΑΓΑΠΏ",
    "e\u0301te\u0301 ﬁnd １２３ ＡＢＣ，。！ ｶﾞ ™ ŉ ﬅ ĳ",
    "“curly” ‘quotes’, it’s „low“ \u02bc «guillemets»",
    "zero\u200bwidth \ufeffand con\x07trol, no\u00a0break, wide\u3000blank, line\u2028end",
    "🐶🐶❄️ dogs 👩\u200d🚀",
    "one two three " * 90,
    "Egy macska az asztalon, két kutya a hóban",
    "Две собаки на СНЕГУ",
    "Δύο σκυλιά στο χιόνι",
    "雪地里的两只狗，很可爱。",
    "雪の中の二匹の犬「ワン」",
    "눈 속의 개 두 마리",
    "كلبان في الثلج؟",
    "שני כלבים בשלג",
    "برف میں دو کتے",
    "बर्फ़ में दो कुत्ते",
    "বরফে দুটি কুকুর",
    "பனியில் இரண்டு நாய்கள்",
    "మంచులో రెండు కుక్కలు",
    "สุนัขสองตัวในหิมะ",
    "ორი ძაღლი თოვლში",
    "Երկու շուն ձյան մեջ",
    "ሁለት ውሾች በበረዶ ውስጥ",
    "Hai con chó trong tuyết",
    "İki köpek karda, IĞDIR",
    "Zwei Hunde im Schnee: Größe",
    "Deux chiens dans la neige, où l'été s'achève",
    "Dos perros en la nieve, ¿verdad?",
    "Due cani nella neve",
    "Dois cães na neve",
    "Twee honden in de sneeuw",
    "Två hundar i snön",
    "To hunde i sneen",
    "To hunder i snøen",
    "Kaksi koiraa lumessa",
    "Kaks koera lumes",
    "Divi suņi sniegā",
    "Du šunys sniege",
    "Dwa psy na śniegu",
    "Dva psi ve sněhu",
    "Dva psa na snijegu",
    "Двоє собак у снігу",
    "Две кучета в снега",
    "Doi câini în zăpadă",
    "Dua anjing di salju",
    "Mbwa wawili kwenye theluji",
    "Dalawang aso sa niyebe",
    "Hai chú chó",
    "دو سگ در برف",
    "Dy qen në dëborë",
]

# What is not done here, see docs/parity.md: HTML, what ftfy mends by more than one character, and a last
# sigma behind a point.
NOT_MENDED = ["dogs &amp; cats", "schÃ¶ne GrÃ¼ÃŸe", "Κ.Σ"]


def pictures() -> dict[str, bytes]:
    """Files of odd sizes and several kinds, with something to see in each."""
    rng = np.random.default_rng(20)

    def scene(width: int, height: int) -> Image.Image:
        small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.int16
        )
        noisy = smooth + rng.integers(-20, 20, (height, width, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    # Rests of 3, 7 and 5 pixels beside a crop of 49, of which the half is rounded.
    made = {
        "landscape.jpg": (scene(104, 98), {"quality": 90}),
        "portrait.jpg": (scene(49, 56), {"quality": 90}),
        "tall.png": (scene(51, 57), {}),
        "upscaled.png": (scene(23, 31), {}),
        "wide.webp": (scene(130, 40), {"lossless": True}),
        "grey.jpg": (scene(80, 71).convert("L"), {"quality": 85}),
        "exact.png": (scene(49, 49), {}),
        "large.jpg": (scene(150, 200), {"quality": 80}),
    }
    files = {}
    for name, (image, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]], **options)
        files[name] = buffer.getvalue()
    return files


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def fingerprint(folder: Path) -> str:
    """Of what a stand-in's vectors depend on; weights by their values, whatever file they are in."""
    digest = hashlib.sha256()
    vocabulary = ["vocab.json", "merges.txt"] if (folder / "merges.txt").is_file() else ["tokenizer.json"]
    for name in ["open_clip_config.json", *vocabulary]:
        digest.update((folder / name).read_bytes())
    (path,) = folder.glob("open_clip*model.*")
    for name, tensor in sorted(open_clip.factory.load_state_dict(str(path)).items()):
        digest.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def small(folder: Path) -> dict[str, Any]:
    """What timm is told beside a name."""
    vision = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    if "timm_model_name" not in vision:
        return {}
    state = load_file(folder / "open_clip_model.safetensors")
    width, _, patch, _ = state["visual.trunk.patch_embed.proj.weight"].shape
    told = {"embed_dim": width, "depth": 2, "img_size": vision["image_size"]}
    if "visual.trunk.cls_token" in state:  # PE-Core
        told["ref_feat_shape"] = [vision["image_size"] // patch] * 2
    return told


def golden(folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    os.chdir(folder)  # where `xlm-roberta-base` is a folder
    if (folder / "merges.txt").is_file():
        with tempfile.NamedTemporaryFile(suffix=".gz", delete=False) as merges:
            merges.write(gzip.compress((folder / "merges.txt").read_bytes()))
        bpe = functools.partial(open_clip.tokenizer.SimpleTokenizer, bpe_path=merges.name)
        open_clip.factory.SimpleTokenizer = bpe
    published = timm.create_model
    timm.create_model = functools.partial(published, **small(folder))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    timm.create_model = published
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in files.values()])
        pictures = model.encode_image(images)
        tokens = tokenize(SENTENCES + NOT_MENDED)
        texts = model.encode_text(tokens)
        logits, _ = model.get_logits(images, tokens[: len(SENTENCES)])
    return {
        "fingerprint": fingerprint(folder),
        "model": type(model).__name__,
        "dimension": texts.shape[1],
        # Padded, `[N, length]`; int32 behind zlib.
        "tokens": base64.b64encode(zlib.compress(tokens.numpy().astype("<i4").tobytes())).decode(),
        "length": tokens.shape[1],
        "pictures": encoded(pictures.numpy()),
        "texts": encoded(texts.numpy()),
        "logits": encoded(logits.numpy()),
    }


def main() -> None:
    files = pictures()
    folders = sorted(path.resolve() for path in Path(sys.argv[1]).iterdir())
    made = {
        "versions": {
            **{
                module.__name__: module.__version__
                for module in (open_clip, timm, torch, torchvision, transformers)
            },
            "pillow": PIL.__version__,
        },
        "sentences": SENTENCES,
        "not_mended": NOT_MENDED,
        "pictures": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "kinds": {folder.name: golden(folder, files) for folder in folders},
    }
    GOLDEN.write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
