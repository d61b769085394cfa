"""Search over your own pictures, by text in any language or by another picture.

Runs from the checkout in an environment of its own (`.venv-search`): it is a client of the server and needs
no PyTorch.
"""
