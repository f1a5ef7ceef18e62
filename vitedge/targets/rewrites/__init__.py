"""Exact rewrites of the exported graph that more than one target uses, one a file; a target names those it wants."""
