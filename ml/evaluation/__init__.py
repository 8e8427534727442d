"""The parts of ``ml.evaluation.evaluate``: what is computed, one module per question."""
