"""Batches on a CPU in several streams: cores that wait for nobody do more than cores that share each layer."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from app.serving.backends.base import Floats, OpenVinoBackend, Pixels

_MOST: Final = 4


def stream_count(threads: int) -> int:
    """How many streams to try with so many threads."""
    return min(threads, _MOST)


class StreamedBackend:
    """An OpenVINO network that runs the parts of a batch side by side, each with a share of the threads.

    A batch of fewer images than streams is run as before, by all threads together: that answers soonest.

    Args:
        backend: runs a batch with all threads.
        streams: parts of a batch.

    Raises:
        RuntimeError: the network cannot be compiled again.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, backend: OpenVinoBackend, streams: int) -> None:
        self.precision = backend.precision
        self.streams = streams
        self._backend = backend
        compiled = backend.compile(streams)
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        if len(pixels) < self.streams:
            return self._backend.run(pixels)
        parts = np.array_split(pixels, self.streams)
        for request, part in zip(self._requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        errors = []
        for request in self._requests:  # all of them: one that still runs could not be started again
            try:
                request.wait()
            except RuntimeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return {
            name: np.concatenate([request.get_output_tensor(index).data for request in self._requests])
            for index, name in enumerate(self._backend.outputs)
        }
