"""Tests of ml/dataset."""
