"""Exact float transforms, one a file."""
