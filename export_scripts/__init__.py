"""Build time: load a checkpoint pair, wrap, trace, prove, publish, package."""
