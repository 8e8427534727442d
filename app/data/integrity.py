"""What is missing in a database that was seeded: documents and indexes that something else removed, cases of images."""

import time
from collections.abc import Mapping
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from app.core.exceptions import UnavailableError
from app.data import schema
from app.data.client import MAX_TIME_MS, UNAUTHORIZED

Document = dict[str, Any]

_NO_COLLECTION: Final = 26
# Health checks and pages ask for the faults every second or two, each time with ten commands.
_FAULTS_S: Final = 4.0
_COUNTS: Final = {schema.CASES: "case_counts", schema.IMAGES: "image_counts"}


class FaultCheck:
    """Looks for what was removed since the last complete seeding.

    Args:
        database: the seeded database.
        limit: up to which documents are counted; a larger collection is not checked.
    """

    def __init__(self, database: AsyncDatabase[Document], limit: int) -> None:
        self._database = database
        self._limit = limit
        self._run_id: Any = None
        self._expires = 0.0
        self._faults: tuple[list[str], list[str]] = [], []

    async def faults(self, run: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
        """Documents and indexes that are missing, a sentence for each; at most ``_FAULTS_S`` old.

        Args:
            run: the last complete seeding run as the database has it now; None: nothing was seeded.
        """
        if run is None:
            return [], []
        now = time.monotonic()
        if run["_id"] != self._run_id or now >= self._expires:
            documents = await missing_documents(self._database, run, self._limit)
            self._faults = documents, await missing_indexes(self._database)
            self._run_id, self._expires = run["_id"], now + _FAULTS_S
        return self._faults


async def missing_documents(database: AsyncDatabase[Document], run: Mapping[str, Any], limit: int) -> list[str]:
    """A sentence for each data collection that does not hold as many documents as its seeding left.

    Args:
        database: the seeded database.
        run: the last complete seeding run.
        limit: up to which documents are counted; a larger collection is not checked.
    """
    faults = []
    for name, member in _COUNTS.items():
        expected = sum(run.get(member, {}).values())
        if not 0 < expected < limit:
            continue
        count = await database[name].count_documents({}, limit=expected + 1, maxTimeMS=MAX_TIME_MS)
        if count != expected:
            more = " or more" if count > expected else ""
            faults.append(f"{name} holds {count}{more} documents, its seeding left {expected}. Run `medpix seed`.")
    return faults


async def missing_indexes(database: AsyncDatabase[Document]) -> list[str]:
    """A sentence for each index that is not there; none for those that this user may not list."""
    faults = []
    for name, expected in schema.index_names().items():
        try:
            present = await database[name].index_information()
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                continue
            if error.code != _NO_COLLECTION:
                raise
            present = {}
        faults += [
            f"The index {index} of {name} is missing. Run `medpix seed`." for index in expected if index not in present
        ]
    return faults


def case_of(image: Mapping[str, Any], cases: Mapping[str, Document]) -> Document:
    """The case of an image.

    Raises:
        UnavailableError: the database does not have it, as while it is seeded.
    """
    case = cases.get(image["U_id"])
    if case is None:
        raise missing_case(image["U_id"], image["_id"])
    return case


def missing_case(u_id: str, image: str) -> UnavailableError:
    """The error that an image of the dataset has no case, as while it is seeded."""
    return UnavailableError(f"Case {u_id} of image {image} is not in the database. Run `medpix seed`, or try later.")
