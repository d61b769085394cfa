"""How long the coverage-guided fuzzers run: a moment every day, as long as asked by `make fuzz`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=int, default=5, help="for each fuzzer")


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-seconds"))
