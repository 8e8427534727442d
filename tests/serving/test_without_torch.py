"""A service on OpenVINO neither imports PyTorch nor the library of the architecture."""

import subprocess
import sys
from pathlib import Path

from benchmarks.serve_models import build

_SERVE = """
import sys
from pathlib import Path
import numpy as np
from app.core.settings import load_settings
from app.serving.backends.devices import make_backend
from app.serving.explain import class_activation_map
from app.serving import predictor
from ml.models import fusion
from ml.models.image_model import DeferredImageModel
from ml.registry.artifacts import read_json
from ml.registry.registry import parse_card

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = DeferredImageModel.load(folder, parse_card(read_json(folder / "card.json")))
    settings = load_settings(home=folder, device="cpu")
    backend = make_backend(model, model.preprocess, settings, "weights")
    assert backend.name == "openvino"
    pixels = np.full((1, 1, 128, 128), 100, dtype=np.uint8)
    assert set(model.combine(backend.run(pixels), None)) == set(model.tasks)
    heat = class_activation_map(backend.feature_maps(pixels), model.class_weights("modality", 0), 128)
    assert heat.shape == (128, 128)
    assert model.is_deferred
    print(*sorted({"torch", "torchvision", "timm", "transformers"} & sys.modules.keys()))
"""


def test_a_model_is_served_and_explained_without_pytorch(tmp_path: Path) -> None:
    model = build("compact")
    model.save(tmp_path)
    (tmp_path / "card.json").write_text(model.card.model_dump_json())
    script = tmp_path / "serve.py"
    script.write_text(_SERVE)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=root,
        env={"PATH": "", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
