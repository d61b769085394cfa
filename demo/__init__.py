"""The bundled checkpoint pair: its world, pictures, words, training, and the language self-test."""
