"""The HTTP API: application factory, routes, schemas, errors and middleware."""
