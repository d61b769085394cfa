import java.awt.image.BufferedImage;

/** Pictures as CLIP and SigLIP take them: resized as Pillow does it, and cropped or squashed. */
final class ClipPixels {
    private static final int PRECISION = 22; // bits after the point, Pillow's

    private ClipPixels() {}

    /**
     * Returns uint8 [3, cropHeight, cropWidth], RGB, of an opaque, upright picture.
     *
     * <p>The parameters are those of spec.json: shortest_edge, crop_height, crop_width, resize, resample
     * and crop_offset.
     */
    static byte[] of(
            BufferedImage image,
            int shortestEdge,
            int cropHeight,
            int cropWidth,
            String resize,
            String resample,
            String cropOffset) {
        int width = image.getWidth();
        int height = image.getHeight();
        int newWidth = cropWidth;
        int newHeight = cropHeight;
        if (resize.equals("shortest_edge")) {
            boolean upright = width <= height;
            // In double and truncated, not rounded.
            newWidth = upright ? shortestEdge : (int) ((double) (shortestEdge * (long) width) / height);
            newHeight = upright ? (int) ((double) (shortestEdge * (long) height) / width) : shortestEdge;
        } else if (!resize.equals("squash")) {
            throw new IllegalArgumentException("resize " + resize + ": shortest_edge and squash are supported");
        }
        if (!resample.equals("bicubic") && !resample.equals("bilinear")) {
            throw new IllegalArgumentException("resample " + resample + ": bicubic and bilinear are supported");
        }
        if (!cropOffset.equals("floor") && !cropOffset.equals("round")) {
            throw new IllegalArgumentException("crop_offset " + cropOffset + ": floor and round are supported");
        }
        boolean cubic = resample.equals("bicubic");
        int[] rgb = image.getRGB(0, 0, width, height, null, 0, width);
        int left = half(newWidth - cropWidth, cropOffset);
        int top = half(newHeight - cropHeight, cropOffset);
        byte[] pixels = new byte[3 * cropHeight * cropWidth];
        for (int channel = 0; channel < 3; channel++) {
            int[] plane = new int[width * height];
            for (int i = 0; i < plane.length; i++) {
                plane[i] = rgb[i] >> (16 - 8 * channel) & 0xff;
            }
            // Rows first; each pass gives whole values from 0 to 255.
            plane = resize(plane, width, height, newWidth, cubic);
            plane = resize(plane, height, newWidth, newHeight, cubic);
            for (int y = 0; y < cropHeight; y++) {
                for (int x = 0; x < cropWidth; x++) {
                    pixels[(channel * cropHeight + y) * cropWidth + x] =
                            (byte) plane[(top + y) * newWidth + left + x];
                }
            }
        }
        return pixels;
    }

    /** Half of what is cropped off: rounded down, or to the nearest even number. */
    private static int half(int rest, String cropOffset) {
        return cropOffset.equals("round") ? (int) Math.rint(rest / 2.0) : rest / 2;
    }

    /** Resizes the rows of [height, width] to newWidth, and returns the result transposed: [newWidth, height]. */
    private static int[] resize(int[] plane, int width, int height, int newWidth, boolean cubic) {
        int[] resized = new int[newWidth * height];
        double scale = (double) width / newWidth;
        double filterScale = Math.max(scale, 1);
        double support = (cubic ? 2 : 1) * filterScale;
        for (int i = 0; i < newWidth; i++) {
            double center = (i + 0.5) * scale;
            int first = Math.max((int) (center - support + 0.5), 0);
            int count = Math.min((int) (center + support + 0.5), width) - first;
            double[] weights = new double[count];
            double sum = 0;
            for (int j = 0; j < count; j++) {
                double x = (first + j - center + 0.5) / filterScale;
                weights[j] = cubic ? bicubic(x) : Math.max(1 - Math.abs(x), 0);
                sum += weights[j];
            }
            int[] fixed = new int[count];
            for (int j = 0; j < count; j++) {
                double weight = weights[j] / sum * (1 << PRECISION);
                fixed[j] = (int) (weight < 0 ? weight - 0.5 : weight + 0.5);
            }
            for (int y = 0; y < height; y++) {
                int value = 1 << (PRECISION - 1);
                for (int j = 0; j < count; j++) {
                    value += plane[y * width + first + j] * fixed[j];
                }
                resized[i * height + y] = Math.min(Math.max(value >> PRECISION, 0), 255);
            }
        }
        return resized;
    }

    private static double bicubic(double x) {
        double a = -0.5;
        double d = Math.abs(x);
        if (d < 1) {
            return ((a + 2) * d - (a + 3)) * d * d + 1;
        }
        return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
    }
}
