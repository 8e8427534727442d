"""The parts of ``ml.evaluate``: what is computed, one module per question."""
