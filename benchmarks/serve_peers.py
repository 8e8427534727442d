"""The servers that benchmarks/serve.py compares the service with: a plain FastAPI endpoint, and LitServe."""

import io
import sys
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image

from benchmarks.serve_models import build
from ml.models.base import softmax
from ml.models.image import ImageModel
from ml.preprocess import Pixels


def _pixels(model: ImageModel, data: bytes) -> Pixels:
    preprocess = model.preprocess
    assert preprocess is not None
    with Image.open(io.BytesIO(data)) as image:
        return preprocess.apply(image)


def _answer(model: ImageModel, logits: Any) -> dict[str, Any]:
    shares = dict(zip(model.card.tasks["modality"], map(float, softmax(logits)), strict=True))
    return {"label": max(shares, key=lambda label: shares[label]), "probabilities": shares}


def serve_plain(name: str, port: int) -> None:
    """What most people write first: a `def` endpoint that runs PyTorch eagerly."""
    model = build(name)
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        with torch.inference_mode():
            pixels = torch.from_numpy(_pixels(model, image.file.read())[None].copy())
            logits = model.network(pixels)["modality"][0].numpy()
        return _answer(model, logits)

    uvicorn.run(app, port=port, log_level="error")


def serve_litserve(name: str, port: int) -> None:
    """LitServe as its documentation shows it, with its batching and its decode hook."""
    import litserve  # noqa: PLC0415 - the other peer must not pay for it

    class Api(litserve.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            del device
            self.model = build(name)

        def decode_request(self, request: Any) -> Pixels:
            return _pixels(self.model, request["image"].file.read())

        def batch(self, inputs: list[Pixels]) -> torch.Tensor:
            return torch.from_numpy(np.stack(inputs))

        def predict(self, pixels: torch.Tensor) -> Any:
            with torch.inference_mode():
                return self.model.network(pixels)["modality"].numpy()

        def unbatch(self, output: Any) -> list[Any]:
            return list(output)

        def encode_response(self, output: Any) -> dict[str, Any]:
            return _answer(self.model, output)

    api = Api(max_batch_size=8, batch_timeout=0.01)
    litserve.LitServer(api, accelerator="cpu").run(port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    kind, chosen, where = sys.argv[1:]
    {"plain": serve_plain, "litserve": serve_litserve}[kind](chosen, int(where))
