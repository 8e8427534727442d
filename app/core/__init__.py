"""Settings, errors and helpers that every layer may use."""
