"""What stands in for the real thing, for tests and benchmarks alike: checkpoints, pictures, clusters."""
