"""Plain traceable encoders: one file a family."""
