"""Settings of a published config.json that are not part of the model's shape: which may be there, and with which value."""

from __future__ import annotations

from typing import Any

# The only value of a setting that this model has; of several, all mean the same.
ONLY: dict[str, tuple[Any, ...]] = {
    "use_bias": (False,), "hidden_act": ("silu",), "norm_topk_prob": (True,), "tie_word_embeddings": (False,),
    "quantization_config": (None,), "use_sliding_window": (False, None), "attention_bias": (False, None),
    "mlp_bias": (False, None), "use_rmsnorm": (True, None), "use_qk_norm": (False, None), "use_mup": (False, None),
    "score_function": ("softmax", None), "scoring_func": ("softmax", None), "routed_scaling_factor": (1.0, None),
    "partial_rotary_factor": (1.0, None), "rotary_percent": (1.0, None), "rope_interleave": (False, None),
    "rope_interleaved": (False, None), "rotary_interleaved": (False, None), "n_group": (None, 0, 1),
    "topk_group": (None, 0, 1), "use_expert_bias": (False, None),
    "topk_method": ("greedy", "softmax", None), "moe_layer_freq": (1, None), "num_nextn_predict_layers": (0, None),
    "mtp_loss_scaling_factor": (0, 0.0, None), "embedding_multiplier": (1.0, None), "scale_emb": (1.0, None),
    "logits_scaling": (1.0, None), "residual_multiplier": (1.0, None), "attention_multiplier": (None,),
    "logit_softcapping": (None,), "final_logit_softcapping": (None,), "attn_logit_softcapping": (None,),
    "attention_dropout": (0.0, None), "embedding_dropout": (0.0, None), "output_dropout": (0.0, None),
    "hidden_dropout": (0.0, None), "is_encoder_decoder": (False, None), "is_decoder": (False, None),
    "add_cross_attention": (False, None), "layer_types": (None,), "pruned_heads": ({}, None),
    "chunk_size_feed_forward": (0, None), "multi_gate": (False, None), "moe_shared_expert_gate": (False, None),
    "group_norm_size": (None, 0, 1), "kv_lora_rank": (None, 0), "q_lora_rank": (None, 0), "layer_group_size": (None, 0, 1),
    "rope_parameters.partial_rotary_factor": (1.0, None),
}  # fmt: skip
# Settings that change nothing of what the model computes: of the library, of generation, of another loss.
NEUTRAL = frozenset({
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures", "attn_implementation",
    "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id", "length_penalty", "mask_token_id",
    "max_length", "max_seq_len", "max_window_layers", "min_length", "model_type", "no_repeat_ngram_size",
    "norm_head", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_router_logits", "output_scores", "pad_token_id", "prefix", "pretraining_tp",
    "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "rope_parameters", "rope_scaling", "router_aux_loss_coef", "router_dtype", "router_z_loss_coef", "sep_token_id",
    "seq_length", "sliding_window", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unk_token_id", "use_bfloat16", "use_cache",
})  # fmt: skip
