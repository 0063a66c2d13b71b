"""The command `hf-bert4rec`: recipes, training runs, comparisons and data sets on the Hub."""
