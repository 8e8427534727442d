"""`medpix up`: everything with one command."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import DataOption, HostOption, PortOption, load_settings
from app.cli.fetch import fetch_dataset

if TYPE_CHECKING:
    from app.core.settings import Settings


def up(
    data: DataOption = None,
    train: Annotated[bool, typer.Option(help="Train what is missing of the models that MEDPIX_TRAIN names")] = True,
    port: PortOption = None,
    host: HostOption = None,
) -> None:
    """Start everything: database, data, API and pages, and the training of missing models."""
    from app.cli.port import check_port
    from app.cli.serve import check_selected_models

    settings = load_settings(data, port=port, host=host)
    check_port(settings)
    check_selected_models(settings)
    if train and settings.train != ["auto"]:
        from ml.training.selection import check_setting

        check_setting(settings.train)
    if settings.data_dir is None:
        fetch_dataset(settings)
    run_service(settings, seed=True, train=train)


def run_service(settings: "Settings", *, seed: bool, train: bool) -> None:
    """Run the service under a supervisor until it is told to stop.

    Args:
        settings: of the service.
        seed: load the dataset before the API starts.
        train: train what is missing, beside the API.

    Raises:
        app.core.exceptions.UserError: it could not be started, or cannot go on.
    """
    from app.cli.status_lines import StatusLines, note_failed_training
    from app.cli.supervisor import Supervisor
    from app.data.client import connect
    from app.data.schema import DATABASE

    supervisor = Supervisor(settings, seed=seed, train=train)
    with connect(supervisor.uri, settings) as client:
        database = client.get_default_database(DATABASE)
        supervisor.trainer_failed = partial(note_failed_training, database)
        with StatusLines(settings, database, supervisor):
            supervisor.run()
