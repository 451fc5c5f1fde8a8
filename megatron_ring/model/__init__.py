"""Ring-lite's architecture (`bailing_moe`) as a megatron-core layer spec: attention, experts, router, norm, log-probs."""
