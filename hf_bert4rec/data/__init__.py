"""From a raw log to batches: interactions, item tokenizer, histories, collators, and the audit of a split."""
