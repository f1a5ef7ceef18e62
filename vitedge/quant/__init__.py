"""Quantisation: observers, calibration, scheme, sensitivity, Q/DQ insertion, dynamic."""
