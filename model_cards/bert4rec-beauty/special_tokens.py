"""The special tokens, which take the first rows of every item table."""

SPECIAL_TOKENS = ("[PAD]", "[MASK]", "[UNK]")
"""Rows 0, 1 and 2 of every item table. Items start at row `len(SPECIAL_TOKENS)` and are never renumbered."""
