"""Clients for MongoDB with the service's timeouts; one place decides how a connection behaves."""

from typing import Any, Final
from urllib.parse import unquote

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError

from app.core.exceptions import UserError
from app.core.settings import Settings

Document = dict[str, Any]

# The server's code for "this user may not do that".
UNAUTHORIZED: Final = 13
# Of a read of the API: a contains condition reads every document; MongoDB stops it after this time.
MAX_TIME_MS: Final = 2_000
_AUTHENTICATION_FAILED: Final = 18


class DatabaseConfigurationError(UserError):
    """MEDPIX_MONGO_URI cannot be used."""


def redact(uri: str) -> str:
    """A MongoDB address without its password, fit for a log line; the path of a socket is readable."""
    scheme, mark, rest = uri.partition("://")
    # Not by urllib: a password with a slash or a hash that were not escaped would end the host's part there.
    secret, at, address = rest.rpartition("@")
    if not at:
        return f"{scheme}{mark}{unquote(rest)}"
    return f"{scheme}{mark}{secret.partition(':')[0]}:***@{address}"


def _options(settings: Settings) -> Document:
    return {
        "appname": "medpix",
        "tz_aware": True,
        "serverSelectionTimeoutMS": int(settings.mongo_server_selection_s * 1000),
        "connectTimeoutMS": int(settings.mongo_server_selection_s * 1000),
        # Not timeoutMS: under it a read against a server that is down is retried until it expires.
        "socketTimeoutMS": int(settings.mongo_timeout_s * 1000),
        "retryReads": True,
        "retryWrites": True,
    }


def connect(uri: str, settings: Settings, *, timeout_s: float | None = None) -> MongoClient[Document]:
    """A blocking client, for seeding, training and the command line.

    Args:
        uri: a ``mongodb://`` address.
        settings: supplies the timeouts.
        timeout_s: limit per operation in seconds, instead of the setting; 0 means no limit.

    Raises:
        DatabaseConfigurationError: the address is malformed.
    """
    options = _options(settings)
    if timeout_s is not None:
        options["socketTimeoutMS"] = int(timeout_s * 1000) or None
    try:
        return MongoClient(uri, **options)
    except (ConfigurationError, InvalidURI, ValueError) as error:
        raise DatabaseConfigurationError(_explain(uri, error)) from error


def connect_async(uri: str, settings: Settings) -> AsyncMongoClient[Document]:
    """A client for the running event loop; it belongs to that loop alone.

    Raises:
        DatabaseConfigurationError: the address is malformed.
    """
    try:
        return AsyncMongoClient(uri, maxPoolSize=settings.mongo_pool_size, **_options(settings))
    except (ConfigurationError, InvalidURI, ValueError) as error:
        raise DatabaseConfigurationError(_explain(uri, error)) from error


def _explain(uri: str, error: Exception) -> str:
    return (
        f"MEDPIX_MONGO_URI is not a usable MongoDB address: {error}. "
        f"Expected mongodb://USER:PASSWORD@HOST:27017/medpix, got {redact(uri)!r}."
    )


def reason_of(error: PyMongoError) -> str:
    """An error's message without the driver's settings."""
    return str(error).partition(" (configured timeouts")[0]


def explain_refusal(error: PyMongoError) -> str:
    """What a person can do about an error that the server answered with."""
    reason = str(error).partition(", full error")[0]
    match error:
        case OperationFailure(code=code) if code == _AUTHENTICATION_FAILED:
            return (
                "MongoDB refused the user or the password of MEDPIX_MONGO_URI. With docker compose: the database "
                "keeps the passwords of its first start, whatever is in .env now; .env.example says how to change them."
            )
        case OperationFailure(code=code) if code == UNAUTHORIZED:
            return f"The user of MEDPIX_MONGO_URI may not do this: {reason}"
    return f"MongoDB refused: {reason}"
