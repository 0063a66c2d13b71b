"""The models, their configurations and their loss: the code that is saved with the weights."""
