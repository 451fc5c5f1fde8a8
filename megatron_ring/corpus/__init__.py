"""Tokenised corpora in megatron-core's indexed form (`PREFIX.bin`, `PREFIX.idx`): how they are made, checked and opened,
blends of them, and the sequences that pretraining reads.

`open_corpus` is the door for readers. This room may import megatron, which data/ may not.
"""
