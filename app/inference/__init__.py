"""From uploaded bytes to a prediction: decoding, batching, backends."""
