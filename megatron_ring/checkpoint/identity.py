"""Which weights a folder holds, told by its content and not by its path."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron_ring.checkpoint.manifest import NAME as MANIFEST
from megatron_ring.checkpoint.manifest import read_manifest

SAMPLES, SAMPLE_BYTES = 64, 4096


def weights_fingerprint(folder: Path) -> str:
    """A fingerprint (32 hex digits) of a checkpoint or Hugging Face folder, in far less time than reading it takes.

    Of a checkpoint: its shape and the checksums of its files. Of a Hugging Face folder: config.json, and of each safetensors
    file the name, the size and 64 samples of 4 KiB, evenly spaced, its header at the front among them. A fine-tuned model
    differs in all of them; an edit of a few numbers may lie between two samples.
    """
    digest = hashlib.blake2b(digest_size=16)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        digest.update(json.dumps([manifest["model"], manifest["files"]], sort_keys=True).encode())
        return digest.hexdigest()
    config = folder / "config.json"
    digest.update(config.read_bytes() if config.exists() else b"")
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        step = max(SAMPLE_BYTES, size // SAMPLES)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
