"""Tests of ml/models."""
