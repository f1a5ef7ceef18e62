"""The steps of a run, each a function of (bundle, options). Their order is `vitedge.pipeline`'s alone."""
