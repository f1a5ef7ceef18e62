"""Checkpoints of the families of ViTs that the plain layouts do not hold, one file a library and family.

Each has `read(tensors, described) -> Read`: the tensors by the library's names, and what the library's own description
says where tensors say nothing (heads, activation, pooling, epsilon). Whatever is not taken, or not known, is refused.
"""
