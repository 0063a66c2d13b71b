"""What the stock Trainer needs to train a recommender."""
