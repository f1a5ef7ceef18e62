"""Data sets, preprocessing, calibration sampling and the drawn `shapes` set. Never imports torch."""
