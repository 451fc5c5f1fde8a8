"""The manifest of a checkpoint: what it is, and size and checksums (CRC-32 of each 16 MiB) of its files.

A checkpoint without one is no checkpoint: it is written last, before the folder gets its name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError

NAME = "manifest.json"


def checksums(path: Path) -> list[str]:
    """CRC-32 of each block of a file, eight hexadecimal digits."""
    from megatron_ring.checkpoint.fast_files import DirectReader  # it loads torch, which readers of a manifest need not

    with DirectReader(path) as file:
        return file.checksums()


def write_manifest(
    folder: Path, model: ModelConfig, step: int, layout: dict[str, int], extra: dict[str, Any], known: dict[str, list[str]],
    more: dict[str, Any],
) -> None:  # fmt: skip
    """Describe the files of `folder`, durably. `known`: checksums of files that are durable already, by name;
    `more`: further entries."""
    from megatron_ring.checkpoint.fast_files import BLOCK

    files = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".nfs"):  # a removed file that a process still has open; it goes away by itself
            continue
        if path.name not in known:
            make_durable(path)
        files[path.name] = {"bytes": path.stat().st_size, "crc32": known.get(path.name) or checksums(path)}
    manifest = {"step": step, "model": dataclasses.asdict(model), "layout": layout, **more, "extra": extra,
                "checksum_block_bytes": BLOCK, "files": files}  # fmt: skip
    with open(folder / NAME, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are there and of the right size (contents: `damaged_files`).

    Raises:
        UserError: not a whole checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        raise UserError(f"{folder}: not a checkpoint (it has no {NAME})")
    try:
        manifest = json.loads(path.read_text())
        files = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
        _ = [entry["crc32"] for entry in manifest["files"].values()]
        manifest = {"layout": {}, "extra": {}, **manifest}
        well_formed = _is_well_formed(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise UserError(f"{path}: not a checkpoint manifest")
    for name, size in files.items():
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, the manifest names it")
        found = (folder / name).stat().st_size
        if found != size:
            raise UserError(f"{folder / name}: {found:,} bytes, the manifest says {size:,}")
    return manifest


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether what others read of it is of the kinds that it was written with."""
    step, extra = manifest["step"], manifest["extra"]
    tables = [manifest["model"], manifest["layout"], extra]
    tables += [extra[name] for name in ("config", "content") if isinstance(extra, dict) and name in extra]
    return type(step) is int and step >= 0 and all(isinstance(table, dict) for table in tables)


def damaged_files(folder: Path, manifest: dict[str, Any], part: int = 0, parts: int = 1) -> list[str]:
    """Names of the files whose content is not what was written. With `parts`, every `parts`-th file from `part` on:
    processes share the work."""
    names: Sequence[str] = sorted(manifest["files"])[part::parts]
    return [name for name in names if is_damaged(folder, manifest, name)]


def is_damaged(folder: Path, manifest: dict[str, Any], name: str) -> bool:
    """Whether a file's content is not what was written."""
    return checksums(folder / name) != manifest["files"][name]["crc32"]


def damaged(folder: Path, names: Sequence[str]) -> UserError:
    """The error that says so."""
    return UserError(f"{folder}: damaged (the content is not what was saved): {', '.join(names)}")


def read_file(folder: Path, name: str) -> bytes | None:
    """One of the `files` that a checkpoint was saved with; None when it has none of this name.

    Raises:
        UserError: it is damaged, or `folder` is not a whole checkpoint.
    """
    manifest = read_manifest(folder)
    if name not in manifest["files"]:
        return None
    if is_damaged(folder, manifest, name):
        raise damaged(folder, [name])
    return (folder / name).read_bytes()


def model_config_of(folder: Path) -> ModelConfig:
    """Shape of the model that a checkpoint holds."""
    try:
        return ModelConfig.from_values(read_manifest(folder)["model"])
    except TypeError as error:
        raise UserError(f"{folder / NAME}: not a model of this version: {error}") from None


def make_durable(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
