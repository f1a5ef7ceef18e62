"""A budget in, the best model out: candidates ranked by prediction, the best of them made and measured.

Importing this package imports neither torch nor Optuna.
"""
