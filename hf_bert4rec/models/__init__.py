"""The models, their configurations and their loss: the code that travels with the weights."""
