import ai.djl.modality.cv.Image;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.translate.Batchifier;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import ai.djl.util.JsonUtils;
import com.google.gson.JsonObject;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;

/** A picture to its embedding, float [D]. */
public final class ClipImageTranslator implements Translator<Image, float[]> {
    private JsonObject image;

    @Override
    public void prepare(TranslatorContext context) throws IOException {
        String spec = Files.readString(context.getModel().getModelPath().resolve("spec.json"));
        image = JsonUtils.GSON.fromJson(spec, JsonObject.class).getAsJsonObject("image");
    }

    @Override
    public NDList processInput(TranslatorContext context, Image input) {
        int height = image.get("crop_height").getAsInt();
        int width = image.get("crop_width").getAsInt();
        // BufferedImageFactory is DJL's default; OpenCV's images wrap a Mat.
        BufferedImage picture = (BufferedImage) input.getWrappedImage();
        byte[] pixels =
                ClipPixels.of(
                        picture,
                        image.get("shortest_edge").getAsInt(),
                        height,
                        width,
                        image.get("resize").getAsString(),
                        image.get("resample").getAsString(),
                        image.get("crop_offset").getAsString());
        ByteBuffer buffer = context.getNDManager().allocateDirect(pixels.length);
        buffer.put(pixels).rewind();
        NDArray pixelValues =
                context.getNDManager().create(buffer, new Shape(3, height, width), DataType.UINT8);
        return new NDList(pixelValues);
    }

    @Override
    public float[] processOutput(TranslatorContext context, NDList output) {
        return output.singletonOrThrow().toFloatArray();
    }

    /** Pictures have one size, so that several make one batch. */
    @Override
    public Batchifier getBatchifier() {
        return Batchifier.STACK;
    }
}
