"""Tests of ml/registry."""
