"""Tests of serving/backends."""
