"""The proof: an encoder file against the original of its checkpoint."""
