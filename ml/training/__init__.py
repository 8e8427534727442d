"""Training: loop, checkpoints, calibration, progress."""
