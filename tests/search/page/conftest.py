"""Fixtures of the page's tests; they run where LanceDB and Playwright are (`make test-search`)."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("lancedb") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.search.page.pages import browser, many, page, pictures, tab  # noqa: F401  # fixtures
