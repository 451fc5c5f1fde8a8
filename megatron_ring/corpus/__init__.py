"""Corpora on disk (megatron-core's indexed data), blends of them, and the sequences that pretraining reads. May import
megatron's datasets, which data/ may not."""
