"""Training: arguments, callbacks, objectives, optimizer and the Trainer of recommenders."""
