"""Structured pruning: importance, allocation, surgery, reconstruction."""
