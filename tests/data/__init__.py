"""Tests of app/data."""
