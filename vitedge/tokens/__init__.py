"""Merging tokens: which of an image's tokens become one, and what that leaves of the network.

A stream is [B, N, C] until the first merge, and [B, M, C + 1] after it: the last column says how many of the image's
tokens each one stands for. With these sizes in the attention, a merged token weighs exactly what its parts, each
replaced by their mean, would weigh.
"""
