"""Checkpoint in, verified bundle out."""
