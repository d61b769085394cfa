"""The Java of docs/djl/: it compiles, and its pixels are Pillow's.

DJL itself is not at hand: what the translators call of it stands below, as DJL's sources declare it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clipserve.images import ImageLimits, PixelArray, preprocess
from clipserve.preprocessing import CropOffset, ImagePreprocessing, Resize
from export_scripts.parity.inputs import photograph_like

ROOT = Path(__file__).parents[3]
JAVA = ROOT / "docs" / "djl"

pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="no javac on PATH; a JDK has it")

JAVA_MAIN = """
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import javax.imageio.ImageIO;

class Main {
    public static void main(String[] a) throws Exception {
        for (int i = 0; i < a.length; i += 8) {
            byte[] pixels = ClipPixels.of(ImageIO.read(new File(a[i])), Integer.parseInt(a[i + 2]),
                    Integer.parseInt(a[i + 3]), Integer.parseInt(a[i + 4]), a[i + 5], a[i + 6], a[i + 7]);
            Files.write(Path.of(a[i + 1]), pixels);
        }
    }
}
"""

# Signatures, by the name of their type.
DJL = {
    "ai.djl.Model": "public interface Model { java.nio.file.Path getModelPath(); }",
    "ai.djl.ModelException": "public class ModelException extends Exception {}",
    "ai.djl.inference.Predictor": """public class Predictor<I, O> implements AutoCloseable {
        public O predict(I input) throws ai.djl.translate.TranslateException { return null; }
        public void close() {} }""",
    "ai.djl.modality.cv.Image": "public interface Image { Object getWrappedImage(); }",
    "ai.djl.modality.cv.ImageFactory": """public abstract class ImageFactory {
        public static ImageFactory getInstance() { return null; }
        public abstract Image fromFile(java.nio.file.Path path) throws java.io.IOException; }""",
    "ai.djl.ndarray.NDArray": """public interface NDArray {
        ai.djl.ndarray.types.Shape getShape(); float[] toFloatArray(); }""",
    "ai.djl.ndarray.NDList": """public class NDList extends java.util.ArrayList<NDArray> {
        public NDList(NDArray... arrays) {}
        public NDArray singletonOrThrow() { return null; } }""",
    "ai.djl.ndarray.NDManager": """public interface NDManager extends AutoCloseable {
        java.nio.ByteBuffer allocateDirect(int capacity);
        NDArray create(java.nio.Buffer data, ai.djl.ndarray.types.Shape shape,
            ai.djl.ndarray.types.DataType type);
        NDArray create(long[][] data); }""",
    "ai.djl.ndarray.types.DataType": "public enum DataType { UINT8 }",
    "ai.djl.ndarray.types.Shape": """public class Shape {
        public Shape(long... shape) {}
        public long get(int dimension) { return 0; } }""",
    "ai.djl.repository.zoo.Criteria": """public class Criteria<I, O> {
        public static Builder<?, ?> builder() { return null; }
        public ZooModel<I, O> loadModel() throws java.io.IOException, ai.djl.ModelException { return null; }
        public static final class Builder<I, O> {
            public <P, Q> Builder<P, Q> setTypes(Class<P> input, Class<Q> output) { return null; }
            public Builder<I, O> optModelPath(java.nio.file.Path path) { return this; }
            public Builder<I, O> optTranslator(ai.djl.translate.Translator<I, O> translator) { return this; }
            public Criteria<I, O> build() { return null; } } }""",
    "ai.djl.repository.zoo.ZooModel": """public class ZooModel<I, O> implements AutoCloseable {
        public ai.djl.inference.Predictor<I, O> newPredictor() { return null; }
        public void close() {} }""",
    "ai.djl.translate.Batchifier": "public interface Batchifier { Batchifier STACK = null; }",
    "ai.djl.translate.TranslateException": "public class TranslateException extends Exception {}",
    "ai.djl.translate.Translator": """public interface Translator<I, O> {
        default Batchifier getBatchifier() { return null; }
        default void prepare(TranslatorContext context) throws Exception {}
        ai.djl.ndarray.NDList processInput(TranslatorContext context, I input) throws Exception;
        O processOutput(TranslatorContext context, ai.djl.ndarray.NDList list) throws Exception; }""",
    "ai.djl.translate.TranslatorContext": """public interface TranslatorContext {
        ai.djl.Model getModel(); ai.djl.ndarray.NDManager getNDManager(); }""",
    "ai.djl.util.JsonUtils": """public final class JsonUtils {
        public static final com.google.gson.Gson GSON = null; }""",
    "ai.djl.huggingface.tokenizers.Encoding": """public class Encoding {
        public long[] getIds() { return null; } }""",
    "ai.djl.huggingface.tokenizers.HuggingFaceTokenizer": """public final class HuggingFaceTokenizer {
        public static Builder builder() { return null; }
        public Encoding[] batchEncode(String[] inputs) { return null; }
        public static final class Builder {
            public Builder optTokenizerPath(java.nio.file.Path path) { return this; }
            public Builder optTruncation(boolean enabled) { return this; }
            public Builder optMaxLength(int length) { return this; }
            public Builder optPadding(boolean enabled) { return this; }
            public HuggingFaceTokenizer build() throws java.io.IOException { return null; } } }""",
    "com.google.gson.Gson": """public final class Gson {
        public <T> T fromJson(String json, Class<T> type) { return null; } }""",
    "com.google.gson.JsonElement": """public abstract class JsonElement {
        public abstract int getAsInt(); public abstract long getAsLong();
        public abstract String getAsString(); }""",
    "com.google.gson.JsonObject": """public final class JsonObject extends JsonElement {
        public JsonElement get(String name) { return null; }
        public JsonObject getAsJsonObject(String name) { return null; }
        public int getAsInt() { return 0; } public long getAsLong() { return 0; }
        public String getAsString() { return null; } }""",
}


def compiled(sources: Sequence[Path], folder: Path) -> None:
    """Compiles into a folder, every warning an error."""
    command = ["javac", "-Xlint:all", "-Werror", "-cp", str(folder), "-d", str(folder), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_of_it_compiles(tmp_path: Path) -> None:
    signatures = []
    for name, body in DJL.items():
        package, _, simple = name.rpartition(".")
        source = tmp_path / "djl" / package / f"{simple}.java"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"package {package};\n{body}\n", encoding="utf-8")
        signatures.append(str(source))
    subprocess.run(["javac", "-d", str(tmp_path), *signatures], check=True)
    sources = sorted(JAVA.glob("*.java"))
    compiled(sources, tmp_path)
    assert {f"{source.stem}.class" for source in sources} <= {path.name for path in tmp_path.iterdir()}
    page = (ROOT / "docs" / "djl.md").read_text(encoding="utf-8")
    assert all(f"](djl/{source.name})" in page for source in sources)


def test_pixels_are_pillows(tmp_path: Path) -> None:
    (tmp_path / "Main.java").write_text(JAVA_MAIN, encoding="utf-8")
    compiled([JAVA / "ClipPixels.java", tmp_path / "Main.java"], tmp_path)
    # Downscaled, upscaled, in one direction only, not at all; hard edges, so that bicubic overshoots.
    sizes = [(640, 427), (300, 451), (31, 40), (48, 200), (48, 48), (1411, 97)]
    rng = np.random.default_rng(0)
    arguments: list[str] = []
    expected: list[PixelArray] = []
    forms: list[tuple[int, int, int, str, Resize, CropOffset]] = [
        (48, 48, 48, "bicubic", "shortest_edge", "floor"),
        (56, 40, 52, "bicubic", "shortest_edge", "floor"),
        (52, 52, 52, "bilinear", "shortest_edge", "floor"),
        # Rests of 3 and 7 pixels.
        (55, 52, 48, "bilinear", "shortest_edge", "round"),
        (48, 48, 48, "bicubic", "squash", "floor"),
        (52, 40, 52, "bilinear", "squash", "floor"),
    ]
    for edge, height, width, resample, resize, crop_offset in forms:
        preprocessing = ImagePreprocessing(
            edge, height, width, resample, (0.0,) * 3, (1.0,) * 3, resize, crop_offset
        )
        for size in sizes:
            picture = photograph_like(rng, *size)
            picture.paste((255, 255, 255), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
            picture.paste((0, 0, 0), (size[0] // 2, size[1] // 2, size[0], size[1]))
            name = str(len(expected))
            picture.save(tmp_path / f"{name}.png")
            arguments += [
                f"{name}.png",
                name,
                str(edge),
                str(height),
                str(width),
                resize,
                resample,
                crop_offset,
            ]
            expected.append(preprocess(picture, preprocessing, ImageLimits()))
    subprocess.run(["java", "Main", *arguments], cwd=tmp_path, check=True)
    for i, pixels in enumerate(expected):
        found = np.frombuffer((tmp_path / str(i)).read_bytes(), np.uint8)
        # Pillow 13 takes the columns of some squashed pictures first, and rounds in between.
        apart = 0 if i < 24 else 1
        np.testing.assert_allclose(found.reshape(pixels.shape).astype(int), pixels, rtol=0, atol=apart)
