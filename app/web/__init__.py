"""The pages, which use nothing but the public API."""
