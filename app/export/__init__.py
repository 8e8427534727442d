"""Turns streams of records into files: JSON, JSON Lines, CSV, Parquet, a zip of images, Croissant metadata."""
