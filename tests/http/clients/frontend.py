"""Loaded by schemathesis in .venv-clients, where it asks TorchServe: knows the one fault of its frontend.

A form's part without a name, an unknown charset or an encoding that is none: its HTTP library raises before
a worker hears of the request, and the frontend answers 500 (docs/deployment.md). Nothing here can mend that;
each such answer is counted in the report as `filtered`, and any other 5xx fails.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from schemathesis.core.failures import ServerError


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure is one."""
    if not isinstance(failure, ServerError) or case.media_type != "multipart/form-data":
        return True
    try:
        said = json.loads(response.content)
    except ValueError:
        return True
    return not (response.status_code == 500 and said.get("type") == "ErrorDataDecoderException")
