"""The folders for DJL: what is in them, and that nothing half-written or changed is published."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipserve.encoder_spec import EncoderSpec, ImagePreprocessing, read_extra_file, read_spec
from clipserve.errors import ExportError, SpecError
from clipserve.images import ImageLimits, PixelArray, preprocess
from export_scripts.packages import djl
from export_scripts.packages.djl import djl_encoders, write_djl
from export_scripts.parity.inputs import photograph_like

ROOT = Path(__file__).parents[3]

JAVA_MAIN = """
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import javax.imageio.ImageIO;

class Main {
    public static void main(String[] a) throws Exception {
        for (int i = 0; i < a.length; i += 5) {
            byte[] pixels = ClipPixels.of(ImageIO.read(new File(a[i])), Integer.parseInt(a[i + 2]),
                    Integer.parseInt(a[i + 3]), Integer.parseInt(a[i + 4]));
            Files.write(Path.of(a[i + 1]), pixels);
        }
    }
}
"""


@pytest.mark.parametrize(
    ("modality", "extra"), [("image", set()), ("text", {"tokenizer.json"})], ids=["image", "text"]
)
def test_folder_and_zip(modality: str, extra: set[str], store: Path, tmp_path: Path) -> None:
    encoder = store / f"clip-{modality}-cpu-fp32.pt"
    folder = write_djl(encoder, tmp_path)
    assert folder == tmp_path / "djl" / encoder.stem
    # DJL looks for a .pt of the folder's name.
    names = {encoder.name, "serving.properties", "spec.json"} | extra
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / encoder.name).read_bytes() == encoder.read_bytes()
    assert EncoderSpec.from_json((folder / "spec.json").read_text("utf-8"), "spec.json") == read_spec(encoder)
    for name in extra:
        assert (folder / name).read_bytes() == read_extra_file(encoder, name)
    assert (folder / "serving.properties").read_text().splitlines() == [
        "engine=PyTorch", f"option.modelName={encoder.stem}", "option.mapLocation=true",
    ]  # fmt: skip
    with zipfile.ZipFile(folder.with_name(f"{encoder.stem}.zip")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
    assert sorted(path.name for path in (tmp_path / "djl").iterdir()) == [encoder.stem, f"{encoder.stem}.zip"]


def test_equal_encoders_give_equal_zips(image_path: Path, tmp_path: Path) -> None:
    zips = []
    for name in ("a", "b"):
        write_djl(image_path, tmp_path / name)
        zips.append((tmp_path / name / "djl" / f"{image_path.stem}.zip").read_bytes())
    assert zips[0] == zips[1]


def test_written_again_it_replaces(image_path: Path, tmp_path: Path) -> None:
    folder = write_djl(image_path, tmp_path)
    (folder / "left over").touch()
    write_djl(image_path, tmp_path)
    assert not (folder / "left over").exists()
    assert djl_encoders(tmp_path) == [folder / image_path.name]


def test_encoders_of_a_store(image_path: Path, text_path: Path, tmp_path: Path) -> None:
    assert djl_encoders(tmp_path) == []
    folders = [write_djl(path, tmp_path) for path in (text_path, image_path)]
    # What does not come from write_djl is not its encoder.
    (tmp_path / "djl" / "other").mkdir()
    (tmp_path / "djl" / "other" / "model.pt").touch()
    assert djl_encoders(tmp_path) == sorted(folder / f"{folder.name}.pt" for folder in folders)


def test_model_name_is_escaped_for_java(
    monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path
) -> None:
    spec = replace(read_spec(image_path), model_id="kép\\🐕")
    monkeypatch.setattr(djl, "read_spec", lambda path: spec)
    folder = write_djl(image_path, tmp_path)
    assert folder.name == "kép\\🐕-image-cpu-fp32"
    properties = (folder / "serving.properties").read_bytes()
    assert b"option.modelName=k\\u00e9p\\u005c\\ud83d\\udc15-image-cpu-fp32\n" in properties


def test_other_formats_are_refused(monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path) -> None:
    spec = replace(read_spec(image_path), format="aoti")
    monkeypatch.setattr(djl, "read_spec", lambda path: spec)
    with pytest.raises(ExportError, match="of the format aoti, DJL loads torchscript"):
        write_djl(image_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK")
    with pytest.raises(SpecError, match="not a readable encoder"):
        write_djl(tmp_path / "broken.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


def test_nothing_half_written(monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path) -> None:
    folder = write_djl(image_path, tmp_path)
    before = folder.stat().st_ino

    def full(folder: Path, archive: Path) -> None:
        archive.write_bytes(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(djl, "_zip", full)
    with pytest.raises(OSError, match="No space left"):
        write_djl(image_path, tmp_path)
    assert folder.stat().st_ino == before
    assert len(list((tmp_path / "djl").iterdir())) == 2


@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac")
def test_pixels_of_the_document_are_pillows(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "djl.md").read_text(encoding="utf-8")
    blocks = [
        block
        for block in re.findall(r"```java\n(.*?)```", document, re.DOTALL)
        if "class ClipPixels" in block
    ]
    assert len(blocks) == 1
    (tmp_path / "ClipPixels.java").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "Main.java").write_text(JAVA_MAIN, encoding="utf-8")
    subprocess.run(["javac", "-d", ".", "ClipPixels.java", "Main.java"], cwd=tmp_path, check=True)
    # Downscaled, upscaled, in one direction only, not at all; hard edges, so that bicubic overshoots.
    sizes = [(640, 427), (300, 451), (31, 40), (48, 200), (48, 48), (1411, 97)]
    rng = np.random.default_rng(0)
    arguments: list[str] = []
    expected: list[PixelArray] = []
    for edge, height, width in ((48, 48, 48), (56, 40, 52)):
        preprocessing = ImagePreprocessing(edge, height, width, "bicubic", (0.0,) * 3, (1.0,) * 3)
        for size in sizes:
            picture = photograph_like(rng, *size)
            picture.paste((255, 255, 255), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
            picture.paste((0, 0, 0), (size[0] // 2, size[1] // 2, size[0], size[1]))
            name = str(len(expected))
            picture.save(tmp_path / f"{name}.png")
            arguments += [f"{name}.png", name, str(edge), str(height), str(width)]
            expected.append(preprocess(picture, preprocessing, ImageLimits()))
    subprocess.run(["java", "Main", *arguments], cwd=tmp_path, check=True)
    for i, pixels in enumerate(expected):
        found = np.frombuffer((tmp_path / str(i)).read_bytes(), np.uint8)
        np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)
