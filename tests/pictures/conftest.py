"""These tests run where LanceDB is (`make test-search`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("lancedb") is None:
    collect_ignore_glob = ["test_*.py"]
