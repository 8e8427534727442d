"""`medpix predict`, as a person runs it."""

import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymongo.database import Database

from app.cli import predict as cli
from app.cli.predict import PredictError, read_captions, write_predictions
from app.core.settings import Settings
from app.serving.batch_prediction import (
    BatchPredictionError,
    ImageFile,
    find_images,
    predict_files,
    select_cards,
)
from app.serving.ray_prediction import predict_files_on_ray
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry
from tests.cli.running import environment, fails, medpix
from tests.conftest import REPOSITORY, Document
from tests.serving.decode.dicom_files import dicom

SLICE = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


@pytest.fixture(scope="module")
def variables(predict_settings: Settings, generated_dataset: Path) -> dict[str, str]:
    """Of a command over the generated dataset and the models that were trained on it."""
    return {
        "MEDPIX_MONGO_URI": str(predict_settings.mongo_uri),
        "MEDPIX_MODELS_DIR": str(predict_settings.model_files_dir),
        "MEDPIX_DATA_DIR": str(generated_dataset),
        "MEDPIX_DEVICE": "cpu",
        "MEDPIX_PRECISION": "fp32",
    }


@pytest.fixture
def cards(ml_database: Database[Document], predict_settings: Settings) -> dict[str, ModelCard]:
    registry = Registry(ml_database, predict_settings.model_files_dir)
    return select_cards(registry, predict_settings, ("modality", "location"))


@pytest.fixture
def archive(generated_dataset: Path, tmp_path: Path) -> Path:
    """A folder of 12 files: PNG, a JPEG below it, DICOM with and without a suffix, a damaged and an empty one."""
    folder = tmp_path / "archive"
    (folder / "deep er" / ".hidden").mkdir(parents=True)
    images = sorted((generated_dataset / "images").iterdir())
    for path in images[:7]:
        shutil.copy(path, folder)
    shutil.copy(images[7], folder / "deep er" / "=cmd.PNG")
    (folder / "deep er" / "slice.dcm").write_bytes(dicom(SLICE))
    (folder / "deep er" / "IM0001").write_bytes(dicom(SLICE))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no picture")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / "deep er" / "README").write_text("no image")
    shutil.copy(images[8], folder / "deep er" / ".hidden" / "a.png")
    return folder


def rows_of(path: Path) -> list[Document]:
    rows: list[Document] = pq.read_table(path).to_pylist()
    return rows


def test_a_folder_becomes_a_table_with_the_answers_of_the_api(
    archive: Path, tmp_path: Path, variables: dict[str, str], predict_api: httpx.Client
) -> None:
    captions = tmp_path / "captions.csv"
    names = [path.name for path in sorted(archive.glob("*.png"))[:7]]
    captions.write_text("image,text\n" + "".join(f"{Path(name).stem},Axial CT of the chest\n" for name in names))
    out = tmp_path / "results.parquet"
    options = ("--captions", str(captions), "--caption-column", "text", "--file-column", "image")
    done = medpix(tmp_path / "home", "predict", str(archive), "--out", str(out), *options, port=1, **variables)
    assert done.returncode == 0, done.stderr
    assert f"{out}: 12 files, 10 predicted, 2 with an error in their rows" in done.stdout
    assert "7 of 12 images have a caption" in done.stdout
    rows = rows_of(out)
    assert [(row["file"], row["task"]) for row in rows] == [
        (image.name, task) for image in find_images(archive) for task in ("modality", "location")
    ]
    failed = {row["file"]: row["error"] for row in rows if row["error"]}
    assert failed.keys() == {"broken.jpg", "empty.png"}
    assert failed["broken.jpg"].startswith("The image is cut or damaged")
    assert failed["empty.png"] == "The image is empty (0 bytes)."
    by_key = {(row["file"], row["task"]): row for row in rows}
    for name in (names[0], "deep er/IM0001", "deep er/=cmd.PNG"):
        files = {"image": (archive / name).read_bytes()}
        caption = {"caption": "Axial CT of the chest"} if name in names else {}
        for task in ("modality", "location"):
            answer = predict_api.post(
                f"/predict/{task}", files=files, data=caption if task == "location" else {}
            ).json()
            row = by_key[name, task]
            assert (row["label"], row["decision"]) == (answer["label"], answer["decision"])
            assert row["probability"] == pytest.approx(answer["probabilities"][0]["probability"], abs=1e-4)
            assert row["inputs_used"].split() == answer["inputs_used"]
            assert (row["sha256"], row["model_sha256"]) == (answer["image"]["sha256"], answer["model"]["sha256"])
            assert next(iter(json.loads(row["probabilities"]))) == row["label"]
    assert by_key["deep er/IM0001", "modality"]["header_modality"] == "CT"
    again = fails(tmp_path / "home", "predict", str(archive), "--out", str(out), port=1, **variables)
    assert f"{out} exists already" in again


class EndError(Exception):
    """The process ends here."""


def test_a_run_that_was_killed_goes_on_where_it_stopped(
    archive: Path, tmp_path: Path, cards: dict[str, ModelCard], predict_settings: Settings
) -> None:
    images, out = find_images(archive), tmp_path / "results.csv"
    batches: list[list[str]] = []

    def run(left: Sequence[ImageFile]) -> Iterator[pa.Table]:
        batches.append([image.name for image in left])
        yield from predict_files(left, cards, predict_settings, part_files=5)

    def run_and_end(left: Sequence[ImageFile]) -> Iterator[pa.Table]:
        for table in run(left):
            yield table
            raise EndError  # after the part was written

    with pytest.raises(EndError):
        write_predictions(images, cards, out, run_and_end)
    assert not out.exists()
    with pytest.raises(PredictError, match="holds the parts of a run with other files or captions"):
        write_predictions(images[1:], cards, out, run)
    assert write_predictions(images, cards, out, run) == 2
    names = [image.name for image in images]
    assert batches == [names, names[5:]]
    assert not out.with_name("results.csv.parts").exists()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"].removeprefix("'") for row in rows] == [name for name in names for _ in range(2)]
    assert not any(row["file"].startswith("=") for row in rows)


def test_kill_9_loses_and_repeats_nothing(archive: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """A real process with parts of two files, killed when some are there."""
    out = tmp_path / "results.parquet"
    code = "import app.cli.predict as c; c._PART_FILES = 2; import sys; from app.main import main; main()"
    command = [sys.executable, "-c", code, "predict", str(archive), "--out", str(out)]
    own = environment(tmp_path / "home", 1, **variables)
    with subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 90
        while len(list(tmp_path.glob("results.parquet.parts/part-*"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
    kept = len(list(tmp_path.glob("results.parquet.parts/part-*")))
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert kept == 6 or f"{2 * kept} of 12 files were predicted before" in done.stdout
    rows = rows_of(out)
    assert len(rows) == len({(row["file"], row["task"]) for row in rows}) == 24


def test_what_a_person_can_mend_is_said(archive: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    home, out = tmp_path / "home", str(tmp_path / "r.parquet")
    (tmp_path / "nothing").mkdir()
    message = fails(home, "predict", str(tmp_path / "nothing"), "--out", out, port=1, **variables)
    assert "holds no image: neither it nor a folder below it has a file in .dcm, .dicom, .jpeg, .jpg, .png" in message
    assert "no such file or folder" in fails(home, "predict", str(tmp_path / "x"), "--out", out, port=1, **variables)
    message = fails(home, "predict", str(archive), "--out", "/proc/r.parquet", port=1, **variables)
    assert "/proc/r.parquet.parts cannot be written" in message
    assert "start the command again to go on" in message
    none = variables | {"MEDPIX_MODELS_DIR": str(tmp_path / "no-models")}
    assert "Run `medpix train modality`" in fails(home, "predict", str(archive), "--out", out, port=1, **none)


def test_a_device_that_is_not_there_is_said(archive: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    hidden = variables | {"CUDA_VISIBLE_DEVICES": ""}
    message = fails(tmp_path, "predict", str(archive), "--out", "r.csv", "--device", "cuda", port=1, **hidden)
    assert "device cuda was asked for, but this machine has none; use --device auto" in message


def test_captions_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    with pytest.raises(PredictError, match=r"captions\.csv: not a table that can be read, .*No such file"):
        read_captions(table, "file", "caption")
    table.write_bytes(b"file,caption\n\xff\xfe,x\n")
    with pytest.raises(PredictError, match="not a table that can be read, as CSV in UTF-8 or Parquet"):
        read_captions(table, "file", "caption")
    table.write_text("file,text\na.png,CT\n")
    with pytest.raises(
        PredictError, match=r"no column 'caption'; name one with --caption-column. There is: file, text"
    ):
        read_captions(table, "file", "caption")
    assert read_captions(table, "file", "text") == {"a.png": "CT"}
    parquet = tmp_path / "captions.parquet"
    parquet.write_text("no table")
    with pytest.raises(PredictError, match="not a table that can be read"):
        read_captions(parquet, "file", "caption")
    pq.write_table(pa.table({"file": ["a.png", "b.png"], "caption": ["CT", None]}), parquet)
    assert read_captions(parquet, "file", "caption") == {"a.png": "CT"}
    with pytest.raises(PredictError, match="none of its 1 file names is that of one of the 1 images"):
        cli._with_captions([ImageFile("c.png", "c.png")], {"a.png": "CT"})


def test_a_full_disk_keeps_what_is_there(
    archive: Path, tmp_path: Path, cards: dict[str, ModelCard], predict_settings: Settings
) -> None:
    """No file may be larger than 2 KB: the system refuses the rest, as a full disk would."""
    images, out = find_images(archive), tmp_path / "results.parquet"

    def run(left: Sequence[ImageFile]) -> Iterator[pa.Table]:
        for number, table in enumerate(predict_files(left, cards, predict_settings, part_files=6)):
            if number == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
            yield table

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(PredictError, match=r"cannot be written: .*File too large.*What was predicted is kept"):
            write_predictions(images, cards, out, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in out.with_name("results.parquet.parts").glob("*.parquet")] == ["part-000000.parquet"]


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_a_ray_worker_that_is_killed_is_replaced_and_loses_nothing(
    archive: Path, tmp_path: Path, cards: dict[str, ModelCard], predict_settings: Settings
) -> None:
    """In a process of its own: Ray leaves threads and sockets behind that this one would warn of."""
    source = tmp_path / "five archives"
    for number in range(5):
        shutil.copytree(archive, source / str(number))
    job = tmp_path / "job.json"
    described = {task: card.model_dump(mode="json") for task, card in cards.items()}
    settings = predict_settings.model_dump(mode="json", exclude={"api_keys", "mongo_uri"})
    job.write_text(json.dumps({"source": str(source), "cards": described, "settings": settings}))
    own = environment(tmp_path / "home", 1, RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.ray_job", str(job), str(tmp_path / "r.parquet")],
        env=own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed worker" in done.stdout
    rows = rows_of(tmp_path / "r.parquet")
    assert len(rows) == len({(row["file"], row["task"]) for row in rows}) == 2 * 5 * len(find_images(archive))


def test_without_ray_it_says_what_to_install(
    cards: dict[str, ModelCard], predict_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BatchPredictionError, match=r"pip install 'medpix-service\[ray\]'"):
        list(predict_files_on_ray([], cards, predict_settings, address="local", workers=2))
