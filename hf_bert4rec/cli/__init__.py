"""The command `hf-bert4rec`: recipes, training runs, comparisons and datasets on the Hub."""
