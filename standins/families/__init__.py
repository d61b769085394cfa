"""Checkpoints of families of two towers, a file a family: what it calls PAIRS is found by `standins.tiny`."""
