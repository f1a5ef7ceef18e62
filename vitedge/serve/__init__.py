"""A page and a REST API over the artifacts of a run folder. Imports no torch: it runs on the board."""
