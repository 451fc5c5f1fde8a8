"""The files of a published folder beside its weights: tokenizer, chat templates, licence, modelling code."""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_ring.checkpoint.hf_config import read_json
from megatron_ring.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".h5", ".msgpack")
NOT_COPIED = ("config.json", "generation_config.json", "README.md")
# Files of a folder that belong to its tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
                   "chat_template.json", "spiece.model", "sentencepiece.bpe.model")  # fmt: skip
TOKENIZER_CODE = "tokenization_"  # how its Python files begin
# Modelling code of ours: it loads in every release of transformers that we test, which that of older folders does not.
CODE = Path(__file__).parent / "hf_code"
CODE_FILES = ("configuration_bailing_moe.py", "modeling_bailing_moe.py")
REWARD_CODE = "modeling_bailing_moe_reward.py"


def published_ends(folder: Path) -> tuple[int, ...]:
    """Tokens that end a response as a published folder says in generation_config.json; none where it says nothing."""
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = found if isinstance(found, list) else [found]
    return tuple(token for token in ends if isinstance(token, int) and not isinstance(token, bool))


def copy_others(folder: Path, work: Path, with_tokenizer: bool = True) -> None:
    """Copy every file of a folder that is neither weights nor written by the export. Raises `UserError`: no such folder."""
    _copy(folder, work, [path for path in _others(folder) if with_tokenizer or not _of_tokenizer(path)])


def copy_tokenizer(folder: Path, work: Path) -> None:
    """Copy the files of a folder that belong to its tokenizer, chat templates included. Raises `UserError`."""
    _copy(folder, work, [path for path in _others(folder) if _of_tokenizer(path)])


def write_code(work: Path, head: str = "vocabulary") -> None:
    """Copy our modelling code, to which `auto_map` of config.json points, for a model with this head."""
    for name in (*CODE_FILES, REWARD_CODE) if head == "score" else CODE_FILES:
        shutil.copyfile(CODE / name, work / name)


def _others(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [path for path in files if not path.name.endswith(WEIGHTS) and path.name not in NOT_COPIED]


def _of_tokenizer(path: Path) -> bool:
    return path.name in TOKENIZER_FILES or path.name.startswith(TOKENIZER_CODE) or path.suffix == ".tiktoken"


def _copy(folder: Path, work: Path, files: list[Path]) -> None:
    """Copy files of a folder; with its tokenizer go the named chat templates."""
    for path in files:
        shutil.copyfile(path, work / path.name)
    templates = folder / "additional_chat_templates"
    if templates.is_dir() and any(_of_tokenizer(path) for path in files):
        shutil.copytree(templates, work / templates.name, dirs_exist_ok=True)
