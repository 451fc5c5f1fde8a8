"""Data curation: from raw dumps to rows for training, with a ledger of what was dropped and why. Imports neither torch nor
megatron."""
