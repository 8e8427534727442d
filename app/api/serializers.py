"""Stored documents as the API answers them: see `app.data.serializers`, which seeding uses too."""

from app.data.serializers import annotation_view, case_view, image_view

__all__ = ["annotation_view", "case_view", "image_view"]
