"""Response models: what each endpoint answers, for FastAPI and OpenAPI."""
