"""Tests of serving/decode."""
