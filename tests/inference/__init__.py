"""Tests of app/inference."""
