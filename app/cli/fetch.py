"""`medpix fetch`: download the dataset."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.common import DataOption, console, errors, load_settings

if TYPE_CHECKING:
    from app.core.settings import Settings


def fetch(data: DataOption = None) -> None:
    """Download MedPix 2.0, unless it is there; an interrupted download is resumed."""
    console.print(str(fetch_dataset(load_settings(data))), soft_wrap=True, highlight=False)


def fetch_dataset(settings: "Settings") -> Path:
    """The dataset's folder; what is missing is downloaded under a progress bar.

    Raises:
        app.core.exceptions.UserError: it could not be downloaded.
    """
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from app.data.dataset import DatasetNotFoundError, find_dataset
    from app.data.download import URL
    from app.data.download import fetch as download

    with suppress(DatasetNotFoundError):
        return find_dataset(settings.dataset_dir)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors) as bars:
        bar = bars.add_task("MedPix 2.0", total=None)

        def show(done: int, total: int | None) -> None:
            bars.update(bar, completed=done, total=total)

        return download(settings.dataset_dir, url=settings.fetch_url or URL, progress=show)
