"""The plain endpoint that benchmarks/serve.py compares the service with."""

import io
import os
import sys
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image

from benchmarks.serve_models import build
from ml.dataset.preprocess import Pixels
from ml.models.base import softmax
from ml.models.image import ImageModel


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


def serve(name: str, port: int) -> None:
    """What most people write first: a `def` endpoint that runs PyTorch eagerly."""
    model = build(name)
    device = os.environ["MEDPIX_DEVICE"]
    model.network.to(device)
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        with torch.inference_mode():
            pixels = torch.from_numpy(prepare(model, image.file.read())[None].copy()).to(device)
            logits = model.network(pixels)["modality"][0].cpu().numpy()
        return answer(model, logits)

    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
