"""Programs that load exported folders in a process of their own, in the release of transformers that is tested.

The environment variable RING_TRANSFORMERS names a folder with another release than the installed one, made by
`pip install --target`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_transformers(program: str, *arguments: str, folder: Path) -> str:
    """What the Python `program` prints; it runs in `folder`, where transformers keeps code of exports as well."""
    path = os.pathsep.join(filter(None, [os.environ.get("RING_TRANSFORMERS"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
