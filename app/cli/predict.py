"""`medpix predict`: predictions of a folder of images as a table; a run that was ended goes on where it stopped."""

import csv
import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from app.cli.common import DataOption, console, errors, load_settings
from app.core.exceptions import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from app.serving.batch_prediction import ImageFile
    from ml.registry.model_card import ModelCard

_LOG = logging.getLogger(__name__)
_FORMATS: Final = (".parquet", ".csv")
_RUN_FILE: Final = "run.json"
_PART_FILES: Final = 128
_LOG_EVERY_S: Final = 15.0


class PredictError(UserError):
    """The table could not be made; what was predicted so far is kept for the next run of the command."""


def predict(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="PNG, JPEG and DICOM files")],
    out: Annotated[Path, typer.Option(help="Table to write, .parquet or .csv: a row per file and task")],
    *,
    task: Annotated[Literal["both", "modality", "location"], typer.Option(help="What to predict")] = "both",
    captions: Annotated[Path | None, typer.Option(help="CSV or Parquet table with the captions of the files")] = None,
    caption_column: Annotated[str, typer.Option(help="Column of the captions")] = "caption",
    file_column: Annotated[str, typer.Option(help="Column of the file names, with or without folder, suffix")] = "file",
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device to compute on; default: MEDPIX_DEVICE")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=256, help="Images in one run of a model; default: measured")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Predict on a Ray cluster; local: one on this machine")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="With --ray: processes that predict")] = 2,
    data: DataOption = None,
) -> None:
    """Predict the images of a folder with the models that the API would serve.

    The results are kept in OUT.parts until all files are done: the same command goes on where it was ended.
    """
    if out.suffix.lower() not in _FORMATS:
        raise typer.BadParameter("the table must end in .parquet or .csv", param_hint="--out")
    from app.data.client import connect
    from app.data.dataset import IMAGE_FOLDER, find_dataset
    from app.data.mongod import database_uri
    from app.data.schema import DATABASE
    from app.serving.batch_prediction import find_images, predict_files, select_cards
    from app.serving.model_selection import TASKS
    from app.serving.ray_prediction import predict_files_on_ray
    from ml.dataset.records import load_records
    from ml.registry.registry import Registry
    from ml.training.device import pick_device

    settings = load_settings(data, device=device, max_batch=batch_size)
    tasks = TASKS if task == "both" else (task,)
    pick_device(settings.device)
    images = find_images(source)
    if captions is not None:
        images = _with_captions(images, read_captions(captions, file_column, caption_column))
    with database_uri(settings) as uri, connect(uri, settings) as client:
        database = client.get_default_database(DATABASE)
        cards = select_cards(Registry(database, settings.model_files_dir), settings, tasks)

        def dev() -> Any:
            return load_records(database, find_dataset(settings.dataset_dir) / IMAGE_FOLDER, ("dev",))

        def run(remaining: "Sequence[ImageFile]") -> "Iterator[pa.Table]":
            if ray is None:
                return predict_files(remaining, cards, settings, dev=dev, part_files=_PART_FILES)
            part_files = max(1, min(_PART_FILES, len(remaining) // (2 * workers)))
            return predict_files_on_ray(remaining, cards, settings, address=ray, workers=workers, part_files=part_files)

        failed = write_predictions(images, cards, out, run)
    console.print(
        f"{out}: {len(images)} files, {len(images) - failed} predicted, {failed} with an error in their rows",
        soft_wrap=True,
        highlight=False,
    )


def write_predictions(
    images: "Sequence[ImageFile]",
    cards: "Mapping[str, ModelCard]",
    out: Path,
    run: "Callable[[Sequence[ImageFile]], Iterator[pa.Table]]",
) -> int:
    """Write a table of predictions, whole or not at all; returns how many files have an error.

    Each part is written for itself, at once and whole, into the folder ``OUT.parts``: whatever ends this process, the
    next one goes on with the files that are in no part.

    Args:
        images: of the archive.
        cards: the model of each task.
        out: the table, .parquet or .csv; it must not be there.
        run: predicts files, a table after the other.

    Raises:
        PredictError: the table is there, the parts are of another run, or they cannot be written.
    """
    import pyarrow.parquet as pq

    from app.core.files import atomic_write

    folder = out.with_name(f"{out.name}.parts")
    if out.exists() and not folder.exists():
        raise PredictError(f"{out} exists already. Remove it, or give --out another name.")
    try:
        _claim(folder, _fingerprint(images, cards))
        done = {name for part in _parts(folder) for name in pq.read_table(part, columns=["file"])["file"].to_pylist()}
        remaining = [image for image in images if image.name not in done]
        if done:
            console.print(
                f"{len(images) - len(remaining)} of {len(images)} files were predicted before", highlight=False
            )
        number = len(_parts(folder))
        with _progress(len(images), len(images) - len(remaining)) as advance:
            for table in run(remaining) if remaining else ():
                with atomic_write(folder / f"part-{number:06}.parquet") as path:
                    pq.write_table(table, path)
                number += 1
                advance(len(set(table["file"].to_pylist())))
        failed = _combine(folder, images, out)
        shutil.rmtree(folder)
    except OSError as error:
        raise PredictError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}. What was predicted is kept; "
            "make it possible to write there, and start the command again to go on."
        ) from error
    return failed


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _fingerprint(images: "Sequence[ImageFile]", cards: "Mapping[str, ModelCard]") -> dict[str, Any]:
    """What the parts of one run have in common: models, files and captions."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.name}\0{image.caption}\0".encode(errors="replace"))
    return {
        "models": {task: f"{card.name} {card.version}" for task, card in cards.items()},
        "files": digest.hexdigest(),
    }


def _claim(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Make the folder of the parts, or see that what is there is of the same run.

    Raises:
        PredictError: it is of another run.
        OSError: it cannot be written.
    """
    from app.core.files import atomic_write
    from ml.registry.artifacts import read_json, write_json

    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    path = folder / _RUN_FILE
    if path.exists():
        recorded = read_json(path)
        differing = [name for name in fingerprint if recorded.get(name) != fingerprint[name]]
        if differing:
            what = {"models": "other models", "files": "other files or captions"}[differing[0]]
            raise PredictError(
                f"{folder} holds the parts of a run with {what}. Remove it to start over, or give --out another name."
            )
    else:
        with atomic_write(path) as unfinished:
            write_json(unfinished, fingerprint)


def _combine(folder: Path, images: "Sequence[ImageFile]", out: Path) -> int:
    """Join the parts to one table in the order of the files; returns how many files have an error."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    from app.core.files import atomic_write

    table = pa.concat_tables([pq.read_table(part) for part in _parts(folder)])
    order = {image.name: index for index, image in enumerate(images)}
    places = pa.table({"place": [order[name] for name in table["file"].to_pylist()], "task": table["task"]})
    table = table.take(pc.sort_indices(places, [("place", "ascending"), ("task", "descending")]))
    with atomic_write(out) as path:
        if out.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(_without_formulas(table), path)
        else:
            pq.write_table(table, path)
    return len(set(table.filter(pc.is_valid(table["error"]))["file"].to_pylist()))


def _without_formulas(table: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    from app.export.tables import escape_formula

    for index, field in enumerate(table.schema):
        if field.type == "string":
            cells = (None if cell is None else escape_formula(cell) for cell in table[field.name].to_pylist())
            table = table.set_column(index, field, pa.array(cells, pa.string()))
    return table


def read_captions(path: Path, file_column: str, caption_column: str) -> dict[str, str]:
    """Captions by file name from a CSV or Parquet table; empty ones are left out.

    Raises:
        PredictError: the table cannot be read, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            columns = pq.read_schema(path).names
            _check_columns(path, columns, file_column, caption_column)
            table = pq.read_table(path, columns=[file_column, caption_column])
            pairs = list(zip(table[file_column].to_pylist(), table[caption_column].to_pylist(), strict=True))
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                _check_columns(path, list(reader.fieldnames or ()), file_column, caption_column)
                pairs = [(row[file_column], row[caption_column]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PredictError(
            f"--captions {path}: not a table that can be read, as CSV in UTF-8 or Parquet: {cause}"
        ) from error
    return {str(name): str(caption).strip() for name, caption in pairs if name and caption and str(caption).strip()}


def _check_columns(path: Path, columns: Sequence[str], *required: str) -> None:
    if missing := [name for name in required if name not in columns]:
        option = "--file-column" if missing[0] == required[0] else "--caption-column"
        raise PredictError(
            f"--captions {path}: there is no column {missing[0]!r}; name one with {option}. "
            f"There is: {', '.join(columns) or 'none'}"
        )


def _with_captions(images: "Sequence[ImageFile]", captions: Mapping[str, str]) -> "list[ImageFile]":
    """Give each image the caption under its path, its file name or its name without suffix."""
    captioned = []
    for image in images:
        path = Path(image.name)
        names = (image.name, path.name, path.stem)
        captioned.append(replace(image, caption=next((captions[name] for name in names if name in captions), None)))
    count = sum(image.caption is not None for image in captioned)
    if not count:
        raise PredictError(
            f"--captions: none of its {len(captions)} file names is that of one of the {len(images)} images"
        )
    console.print(f"{count} of {len(images)} images have a caption", highlight=False)
    return captioned


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar where standard error is a terminal, else log lines; told how many more files are done."""
    if sys.stderr.isatty():
        from rich.progress import MofNCompleteColumn, Progress

        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=errors) as bars:
            bar = bars.add_task("Predicting", total=total, completed=done)
            yield lambda count: bars.advance(bar, count)
        return
    logged = time.monotonic()

    def log(count: int) -> None:
        nonlocal done, logged
        done += count
        if done == total or time.monotonic() - logged > _LOG_EVERY_S:
            logged = time.monotonic()
            _LOG.info("%d of %d files are predicted", done, total)

    yield log
