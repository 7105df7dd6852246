"""Sparse autoencoders: architectures, training, calibration, metrics, formats."""
