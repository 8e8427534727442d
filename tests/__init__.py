"""Tests; the tree mirrors app/ and ml/."""
