"""A plugin of pytest for every room's tests, also where `tests/conftest.py` is cut off.

A shell that starts a command in the background (`nohup make test &`) has it, and all that it starts, ignore
Ctrl-C. Tests that interrupt a command would then wait for ever, or find it done instead of interrupted.
"""

import signal


def pytest_configure() -> None:
    """Ctrl-C counts again, here and in all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
