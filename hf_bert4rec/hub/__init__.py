"""Checkpoints: saved, checked, described by a card, and shared on the Hub."""
