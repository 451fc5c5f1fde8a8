"""A bailing_moe reward model (Ling-lite, Ring-lite) for transformers: one number for a conversation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .configuration_bailing_moe import BailingMoeConfig
from .modeling_bailing_moe import BailingMoeModel, BailingMoePreTrainedModel


class BailingMoeForSequenceClassification(BailingMoePreTrainedModel):  # type: ignore[misc]
    """A reward model: one number for each text, read at its last token, the end of the conversation."""

    _keep_in_fp32_modules_strict = ("score",)

    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BailingMoeModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.word_embeddings = value

    def last_places(self, input_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Where each text ends, int64 [batch]: the last token that is attended to. Without a mask, the last that is no
        padding; where the end of a text and padding are one token, the first of those at the end."""
        batch, tokens = shape
        places = torch.arange(tokens)
        if attention_mask is not None:
            places = places.to(attention_mask.device)
            return (attention_mask.to(torch.bool) * places).argmax(-1)
        if input_ids is None or self.config.pad_token_id is None:
            return torch.full((batch,), tokens - 1)
        places = places.to(input_ids.device)
        last = ((input_ids != self.config.pad_token_id) * places).argmax(-1)
        ends = self.config.eos_token_id if isinstance(self.config.eos_token_id, list) else [self.config.eos_token_id]
        return (last + 1).clamp(max=tokens - 1) if self.config.pad_token_id in ends else last

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Rewards in `logits`, fp32 [batch, 1], of ids [batch, tokens]."""
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=False, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        hidden = found.last_hidden_state
        last = self.last_places(input_ids, attention_mask, (hidden.shape[0], hidden.shape[1])).to(hidden.device)
        ends = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        rewards = F.linear(ends.float(), self.score.weight.float())
        return SequenceClassifierOutputWithPast(logits=rewards, hidden_states=found.hidden_states)
