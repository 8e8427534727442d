"""From uploaded bytes to a prediction: decoding, batching, backends."""

import sys

# OpenVINO sends telemetry at its import; where this module cannot be imported it uses a stub.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None makes the import fail
