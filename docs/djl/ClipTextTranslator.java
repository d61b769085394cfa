import ai.djl.huggingface.tokenizers.Encoding;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.translate.Batchifier;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorContext;
import ai.djl.util.JsonUtils;
import com.google.gson.JsonObject;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** Texts to their embeddings, float [N][D]. */
public final class ClipTextTranslator implements Translator<String[], float[][]> {
    private HuggingFaceTokenizer tokenizer;
    private long padTokenId;
    private int contextLength;
    private boolean alwaysPadded;

    @Override
    public void prepare(TranslatorContext context) throws IOException {
        Path folder = context.getModel().getModelPath();
        JsonObject text =
                JsonUtils.GSON
                        .fromJson(Files.readString(folder.resolve("spec.json")), JsonObject.class)
                        .getAsJsonObject("text");
        padTokenId = text.get("pad_token_id").getAsLong();
        contextLength = text.get("context_length").getAsInt();
        String padding = text.get("padding").getAsString();
        alwaysPadded = padding.equals("context_length");
        if (!alwaysPadded && !padding.equals("longest")) {
            throw new IOException("padding " + padding + ": longest and context_length are supported");
        }
        tokenizer =
                HuggingFaceTokenizer.builder()
                        .optTokenizerPath(folder.resolve("tokenizer.json"))
                        .optTruncation(true)
                        .optMaxLength(contextLength)
                        .optPadding(false) // the tokenizer's file names no padding token; the spec does
                        .build();
    }

    @Override
    public NDList processInput(TranslatorContext context, String[] texts) {
        Encoding[] encodings = tokenizer.batchEncode(texts);
        int longest = Arrays.stream(encodings).mapToInt(e -> e.getIds().length).max().orElseThrow();
        int length = alwaysPadded ? contextLength : longest;
        long[][] ids = new long[texts.length][length];
        long[][] mask = new long[texts.length][length];
        for (int i = 0; i < texts.length; i++) {
            long[] row = encodings[i].getIds();
            Arrays.fill(ids[i], padTokenId);
            System.arraycopy(row, 0, ids[i], 0, row.length);
            Arrays.fill(mask[i], 0, row.length, 1);
        }
        NDManager manager = context.getNDManager();
        return new NDList(manager.create(ids), manager.create(mask));
    }

    @Override
    public float[][] processOutput(TranslatorContext context, NDList output) {
        NDArray embeddings = output.singletonOrThrow();
        int dim = (int) embeddings.getShape().get(1);
        float[] all = embeddings.toFloatArray();
        float[][] rows = new float[all.length / dim][];
        for (int i = 0; i < rows.length; i++) {
            rows[i] = Arrays.copyOfRange(all, i * dim, (i + 1) * dim);
        }
        return rows;
    }

    /** The batch is made in processInput. */
    @Override
    public Batchifier getBatchifier() {
        return null;
    }
}
