"""Measurements: each runs the project and a peer side by side and prints ratios."""
