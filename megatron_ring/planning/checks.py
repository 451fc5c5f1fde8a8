"""What a dry run can check of the files that a run will read, and what it cannot because they are not there yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError

if TYPE_CHECKING:
    from megatron_ring.config.pretrain import CorpusConfig
    from megatron_ring.config.rewards import RewardConfig
    from megatron_ring.config.rl import RLDataConfig
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.data.tokenizer import RingTokenizer


@dataclass
class Checks:
    """Notes of both kinds, for the report."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def shape(
        self, preset: str | None, source: Path | None, flag: str, planned: str | None,
        extended: Callable[[ModelConfig], ModelConfig] = lambda shape: shape,
    ) -> ModelConfig:  # fmt: skip
        """The model's shape, of `preset` or of the checkpoint or folder `source`; where that is not there, of `planned`.
        `extended`: as `ModelOptions.extended`, of the stage.

        Raises:
            UserError: none of them tells it, or they contradict each other.
        """
        if source is not None and source.is_file():
            from megatron_ring.checkpoint.folder import checkpoint_folder

            source = checkpoint_folder(source)
        there = source is not None and source.is_dir()
        if source is not None and not there:
            self.left.append(f"{flag} {source}: not there")
        if there:
            assert source is not None
            found = _shape_of(source)
            agree = preset is None or extended(found) == extended(get_preset(preset))
            require(agree, f"{flag} {source}: a model of another shape than --preset")
            self.done.append(f"{flag} {source}: the model's shape")
            return found
        name = preset or planned
        if name is None:
            said = f"{flag} {source}: not there" if source is not None else "--preset: not given"
            raise UserError(f"{said}; --plan.preset NAME tells a dry run the model's shape")
        return get_preset(name)

    def tokenizer(self, path: Path, flag: str, shape: ModelConfig, template: Path | None = None) -> RingTokenizer | None:
        """The tokenizer, None where it, or the file of its chat template, is not there. Raises `UserError` when it is not
        one of the model's, or has no usable template."""
        flags = {flag: path, flag.replace("tokenizer", "chat-template"): template}
        missing = [f"{name} {file}: not there" for name, file in flags.items() if file is not None and not file.exists()]
        self.left += missing
        if missing:
            return None
        from megatron_ring.data.tokenizer import RingTokenizer

        tokenizer = RingTokenizer.load(path, template)
        known = tokenizer.vocab_size
        require(known <= shape.vocab_size, f"{flag} {path}: {known} tokens, the model has only {shape.vocab_size}")
        self.done.append(f"{flag} {path}: {known:,} tokens of the model's {shape.vocab_size:,}")
        return tokenizer

    def corpora(self, config: CorpusConfig) -> list[Path]:
        """The files of corpora that are not there. Raises `UserError` for a malformed blend."""
        from megatron_ring.corpus.blends import BLEND_FILES, read_blend

        missing = []
        for flag, given in (("--data.train", config.train), ("--data.validation", config.validation)):
            files = [Path(text) for text in given if text.endswith(BLEND_FILES)]
            lacking = [path for path in files if not path.exists()]
            if given and not lacking:
                names = [entry.prefix for entry in read_blend(given, flag)]
                lacking = [
                    path for name in names for path in (Path(f"{name}.idx"), Path(f"{name}.bin")) if not path.exists()
                ]
            self.left += [f"{flag} {path}: not there" for path in lacking]
            missing += lacking
        return missing

    def prompts(
        self, path: Path, flag: str, rewards: RewardConfig, training: RLDataConfig | None = None, steps: int | None = None,
        whole_groups: bool = True, columns: Columns | None = None,
    ) -> list[PromptRecord] | None:  # fmt: skip
        """The prompts, each of whose domains has a verifier that can use the answer; None where the file is not there.

        Args:
            training: of a run that trains on them, which may take a stage file, and choose by solve rate.
            steps: of that run.
            whole_groups: whether its rounds sample all responses to a prompt.
            columns: of a file that is evaluated.

        Raises:
            UserError: a malformed file, a domain that nothing scores, an answer that its verifier cannot use.
        """
        if not path.exists():
            self.left.append(f"{flag} {path}: not there")
            return None
        from megatron_ring.data.fields import PROMPT_FIELDS, Fields
        from megatron_ring.data.files import read_prompt_file
        from megatron_ring.data.schedule import read_schedule, single_source
        from megatron_ring.rewards.composition import read_compositions
        from megatron_ring.rewards.scorer import check_answers, check_domain, check_settings

        if training is None:
            file = read_prompt_file(path, None if columns is None else Fields.of(columns, PROMPT_FIELDS, "--fields"))
            schedule = single_source(file.records, path)
            self.done += [file.note] if file.note else []
        else:
            fields = Fields.of(training, PROMPT_FIELDS, "--data.fields")
            schedule = read_schedule(path, training.min_solve_rate, training.max_solve_rate, fields)
            self.done += schedule.notes
        records = [record for source in schedule.sources for record in source.records]
        composed = {} if rewards.compositions is None else read_compositions(rewards.compositions)
        counts: dict[str, int] = {}
        for record in records:
            counts[record.domain] = counts.get(record.domain, 0) + 1
        for source in schedule.sources:
            for domain in source.domains:
                try:
                    check_domain(domain, composed, whole_groups)
                    check_settings(domain, composed, rewards)
                except UserError as error:
                    raise UserError(f"{flag} {source.path}: {error}") from None
            check_answers(source.answers(), composed)
        told = ", ".join(f"{count:,} {domain}" for domain, count in sorted(counts.items()))
        stages = f" in {len(schedule.stages)} stages" if len(schedule.stages) > 1 else ""
        self.done.append(f"{flag} {path}: {len(records):,} prompts ({told}){stages}, each with a verifier")
        if steps is not None:
            self.done += [f"{flag} {path}: {said}" for said in schedule.unreached(steps)]
        return records

    def longest_prompt(
        self, records: list[PromptRecord] | None, tokenizer: RingTokenizer | None, instruction: str | None
    ) -> int:
        """Tokens of the longest prompt; 1 where that cannot be known."""
        if not records or tokenizer is None:
            self.left.append("whether prompts and longest responses fit together: prompts or tokenizer are not there")
            return 1
        lengths = [len(tokenizer.prompt_tokens(record.prompt, instruction)) for record in records]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        self.done.append(f"the longest prompt has {lengths[longest]:,} tokens ({records[longest].id!r})")
        return lengths[longest]

    def positions(self, shape: ModelConfig, prompt: int, new: int, flag: str = "--sampling.max-new-tokens") -> None:
        """Raises `UserError` where a prompt of so many tokens and `new` ones exceed the model's positions."""
        require(
            prompt + new <= shape.max_positions,
            f"{flag} {new:,} after a prompt of {prompt:,} exceeds the model's {shape.max_positions:,} positions",
        )


def _shape_of(source: Path) -> ModelConfig:
    from megatron_ring.checkpoint.hf_config import read_config
    from megatron_ring.checkpoint.manifest import model_config_of

    return model_config_of(source) if (source / "manifest.json").exists() else read_config(source)[0]
