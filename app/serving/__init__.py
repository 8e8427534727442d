"""From uploaded bytes to a prediction: decoding, batching, backends."""

import sys

# OpenVINO tells its maker of each import, unasked; without this module it has a stub in its place.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
