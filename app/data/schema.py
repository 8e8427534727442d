"""Names of the database and its collections; validators and indexes follow the names here."""

from typing import Final

DATABASE: Final = "medpix"
IMAGES: Final = "Image_Descriptions"
CASES: Final = "Clinical_reports"
IMAGE_REPORTS: Final = "Image_Reports"
MODELS: Final = "Models"
TRAINING_RUNS: Final = "Training_runs"
PREDICTIONS: Final = "Predictions"
SEED_RUNS: Final = "Seed_runs"
