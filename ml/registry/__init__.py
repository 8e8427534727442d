"""Trained models on disk and in MongoDB: files, model cards, reference embeddings."""
