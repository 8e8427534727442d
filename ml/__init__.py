"""The training package: records, models, training, evaluation and the model registry."""
