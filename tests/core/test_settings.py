import pytest

from app.core.settings import ConfigurationError, load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cors_origins", origin) for origin in ("*", "https://viewer.example.org", "http://[::1]:5173")),
        *(("trusted_hosts", host) for host in ("*", "*.example.org", "medpix.example.org", "mongo")),
    ],
)
def test_origins_and_host_names(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MEDPIX_{name.upper()}", f" {value} ,")
    assert getattr(load_settings(), name) == [value]


@pytest.mark.parametrize(
    ("name", "value", "example"),
    [
        ("CORS_ORIGINS", "https://viewer.example.org/", "https://viewer.example.org"),
        ("CORS_ORIGINS", "viewer.example.org", "https://viewer.example.org"),
        ("CORS_ORIGINS", "https://*.example.org", "https://viewer.example.org"),
        ("CORS_ORIGINS", "https://viewer.example.org,HTTPS://Other.example.org", "https://viewer.example.org"),
        ("TRUSTED_HOSTS", "https://medpix.example.org", "*.example.org"),
        ("TRUSTED_HOSTS", "medpix.example.org:8000", "*.example.org"),
        ("TRUSTED_HOSTS", "medpix.*.org", "*.example.org"),
    ],
)
def test_what_no_request_could_equal_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, example: str
) -> None:
    monkeypatch.setenv(f"MEDPIX_{name}", value)
    with pytest.raises(ConfigurationError, match=f"MEDPIX_{name}") as caught:
        load_settings()
    assert str(caught.value).endswith(example)
