"""Uploaded bytes to pixels: PNG, JPEG and DICOM."""
