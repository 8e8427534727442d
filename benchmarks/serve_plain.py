"""The plain endpoint that benchmarks/serve.py compares the service with."""

import io
import os
import sys
import threading
from contextlib import nullcontext
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image

from benchmarks.serve_models import build, peer_run
from ml.dataset.preprocess import Pixels
from ml.models.base import softmax
from ml.models.image_model import ImageModel


def prepare(model: ImageModel, data: bytes) -> Pixels:
    """An uploaded file as the model takes it."""
    preprocess = model.preprocess
    assert preprocess is not None
    with Image.open(io.BytesIO(data)) as image:
        return preprocess.apply(image)


def answer(model: ImageModel, logits: Any) -> dict[str, Any]:
    """The prediction as both peers answer it."""
    shares = dict(zip(model.card.tasks["modality"], map(float, softmax(logits)), strict=True))
    return {"label": max(shares, key=lambda label: shares[label]), "probabilities": shares}


def serve(name: str, port: int, backend: str) -> None:
    """What most people write first: a `def` endpoint that runs the model on one image."""
    model = build(name)
    run = peer_run(model, backend, os.environ["MEDPIX_DEVICE"])
    # One compiled graph runs one request at a time; PyTorch takes calls of all of FastAPI's threads.
    one_at_a_time = threading.Lock() if backend == "openvino" else nullcontext()
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        pixels = prepare(model, image.file.read())[None]
        with one_at_a_time:
            logits = run(pixels)[0]
        return answer(model, logits)

    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
