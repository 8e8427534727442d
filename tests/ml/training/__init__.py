"""Tests of ml/training."""
