"""LitServe as its documentation shows it, with its batching and its decode hook; a peer of benchmarks/serve.py."""

import os
import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from benchmarks.serve_models import build, peer_run
from benchmarks.serve_plain import answer, prepare
from ml.dataset.preprocess import Pixels


class Api(litserve.LitAPI):  # type: ignore[misc]  # litserve has no types
    """Answers with a model; at the top of a module, because LitServe sends it to a process."""

    def __init__(self, name: str, backend: str) -> None:
        super().__init__(max_batch_size=8, batch_timeout=0.01)
        self._name = name
        self._backend = backend

    def setup(self, device: str) -> None:
        """Build the model in the process that runs it."""
        self.model = build(self._name)
        self._run = peer_run(self.model, self._backend, device)

    def decode_request(self, request: Request) -> Pixels:
        """An upload as the model takes it; LitServe gives the form of a request that is declared as such."""
        return prepare(self.model, request["image"].file.read())

    def batch(self, inputs: list[Pixels]) -> Pixels:
        """Images to one array."""
        return np.stack(inputs)

    def predict(self, pixels: Pixels) -> Any:
        """Run the model."""
        return self._run(pixels)

    def unbatch(self, output: Any) -> list[Any]:
        """One row per image."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The same answer as the plain endpoint's."""
        return answer(self.model, output)


if __name__ == "__main__":
    chosen = litserve.LitServer(Api(sys.argv[1], sys.argv[3]), accelerator=os.environ["MEDPIX_DEVICE"])
    chosen.run(port=int(sys.argv[2]), log_level="error", generate_client_file=False)
