"""Tokenised text on disk in megatron-core's indexed form (`.bin`, `.idx`): corpora for pretraining (how they are made,
checked and opened, blends of them, the sequences that are read), and conversations of SFT (made once, mapped, packed).

`open_corpus` and `load_datasets` are the doors for readers. This room may import megatron, which data/ may not.
"""
