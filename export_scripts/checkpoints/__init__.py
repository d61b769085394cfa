"""Loads a checkpoint pair: one file a layout."""
