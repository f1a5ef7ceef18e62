"""Latency, accuracy, power, statistics. Runs on a board: never imports torch."""
