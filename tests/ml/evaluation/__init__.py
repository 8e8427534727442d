"""Tests of ml.evaluation."""
