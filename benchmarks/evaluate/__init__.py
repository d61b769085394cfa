"""`make evaluate`: what a variant of a pair costs in retrieval and zero-shot, beside its original."""
