import ai.djl.ModelException;
import ai.djl.inference.Predictor;
import ai.djl.modality.cv.Image;
import ai.djl.modality.cv.ImageFactory;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;

/** java Embed model_store/djl/IMAGE_STEM model_store/djl/TEXT_STEM photo.png "a text": their cosine. */
public final class Embed {
    private Embed() {}

    public static void main(String[] arguments) throws IOException, ModelException, TranslateException {
        Criteria<Image, float[]> pictures =
                Criteria.builder()
                        .setTypes(Image.class, float[].class)
                        .optModelPath(Path.of(arguments[0]))
                        .optTranslator(new ClipImageTranslator())
                        .build();
        Criteria<String[], float[][]> texts =
                Criteria.builder()
                        .setTypes(String[].class, float[][].class)
                        .optModelPath(Path.of(arguments[1]))
                        .optTranslator(new ClipTextTranslator())
                        .build();
        try (ZooModel<Image, float[]> pictureModel = pictures.loadModel();
                ZooModel<String[], float[][]> textModel = texts.loadModel();
                Predictor<Image, float[]> ofPictures = pictureModel.newPredictor();
                Predictor<String[], float[][]> ofTexts = textModel.newPredictor()) {
            // batchPredict takes a list of pictures and makes one batch of it.
            float[] picture = ofPictures.predict(ImageFactory.getInstance().fromFile(Path.of(arguments[2])));
            float[] text = ofTexts.predict(Arrays.copyOfRange(arguments, 3, 4))[0];
            float cosine = 0;
            for (int i = 0; i < picture.length; i++) {
                cosine += picture[i] * text[i];
            }
            System.out.println(cosine);
        }
    }
}
