"""The endpoints on Ray Serve: the same core, HTTP shapes and settings as under TorchServe."""
