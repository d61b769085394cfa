"""More than one machine: the same core on Ray.

Runs from the checkout in an environment of its own (`.venv-scale`).
"""
