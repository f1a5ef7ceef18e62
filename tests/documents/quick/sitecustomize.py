"""Shortens what takes minutes by the clock, so that the documentation's commands can be run as they are written."""

from vitedge.bench.options import BenchOptions
from vitedge.prune.options import PruneOptions

# Before the configuration is imported, which takes the options as they are then.
QUICK = ((BenchOptions, "seconds", 0.05), (BenchOptions, "launches", 1), (PruneOptions, "fit_steps", 2))
for options, name, value in QUICK:
    options.model_fields[name].default = value
    options.model_rebuild(force=True)

from vitedge.cli import demo  # noqa: E402

demo.SPLITS = {"train": 300, "val": 50, "test": 60, "calib": 32}
demo.command.__defaults__ = (demo.command.__defaults__[0], 0.02, *demo.command.__defaults__[2:])
