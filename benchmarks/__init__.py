"""Measurements; those that have a peer run it in the same run and print ratios."""
