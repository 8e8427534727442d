"""What is printed of an address of the database."""

import pytest

from app.data.client import redact


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://db:27017/medpix", "mongodb://db:27017/medpix"),
        ("mongodb://app:secret@db:27017/medpix", "mongodb://app:***@db:27017/medpix"),
        ("mongodb://app:sec#ret@db:27017/medpix", "mongodb://app:***@db:27017/medpix"),
        ("mongodb://app:sec/r@et@db/medpix", "mongodb://app:***@db/medpix"),
        ("mongodb://app:se[cret@a,b/medpix?replicaSet=rs", "mongodb://app:***@a,b/medpix?replicaSet=rs"),
        ("mongodb://%2Ftmp%2Fmongod.sock/medpix", "mongodb:///tmp/mongod.sock/medpix"),
    ],
)
def test_no_password_is_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown
