"""The MedPix service: data in MongoDB, predictions over HTTP, pages for people."""
