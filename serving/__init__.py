"""Runs TorchServe on this machine: start, wait until truly ready, example, stop."""
