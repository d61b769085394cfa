"""Runs lines of a page of docs/ as they would be pasted, by the interpreter of a client's environment.

    python run_lines.py PAGE NUMBER OLD NEW [OLD NEW …]

Those are the block of Python with this number on the page, from 0, and what is put for what stands in it: the
address of a server, the folder of an export.
"""

import importlib.util
import re
import sys
import types
from pathlib import Path

# eland imports its exporter with its uploader, and that imports PyTorch and transformers. Where there is no
# PyTorch, the modules of the exporter are left out: nothing of them is called.
EXPORTER = {
    "eland.ml.pytorch.traceable_model": ["TraceableModel"],
    "eland.ml.pytorch.transformers": ["UnknownModelInputSizeError", "task_type_from_model_config"],
}


def leave_out_the_exporter():
    """Puts empty modules in its place."""
    for name, contents in EXPORTER.items():
        module = types.ModuleType(name)
        module.__dict__.update(dict.fromkeys(contents))
        sys.modules[name] = module


def main(page, number, *replacements):
    """Runs the block."""
    if importlib.util.find_spec("torch") is None:
        leave_out_the_exporter()
    blocks = re.findall(r"^```python\n(.*?)^```$", Path(page).read_text(encoding="utf-8"), re.M | re.S)
    lines = blocks[int(number)]
    for old, new in zip(replacements[::2], replacements[1::2], strict=True):
        if old not in lines:
            raise SystemExit(f"{page}: {old} is not in block {number}")
        lines = lines.replace(old, new)
    exec(compile(lines, page, "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(*sys.argv[1:])
