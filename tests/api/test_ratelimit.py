"""Which requests count against the limits; the application behind them always answers."""

import asyncio
import re

import httpx
import pytest
from starlette.responses import PlainTextResponse

from app.api.factory import create_app
from app.api.ratelimit import RateLimit
from app.core.settings import load_settings


def _statuses(method: str, address: str, **limits: int) -> list[int]:
    app = RateLimit(PlainTextResponse("answer"), load_settings(**limits))

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return [(await client.request(method, address)).status_code for _ in range(3)]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("method", "address"),
    [
        *(("GET", "/search?q=a"), ("GET", "/search/images?q=a"), ("GET", "/facets"), ("GET", "/statistics?of=cases")),
        *(("GET", "/export"), ("GET", "/export/images.zip"), ("GET", "/export/croissant")),
        *(("GET", "/views/0123/images.csv"), ("POST", "/cases/bulk"), ("POST", "/images/bulk")),
        *(("GET", "/images/MPX1007_synpic46719/similar"), ("GET", "/images/MPX1007_synpic46719/predict")),
        *(("GET", "/images?q=lung"), ("GET", "/cases?limit=1&discussion__regex=a"), ("GET", "/images?sample=3")),
        *(("GET", "/images?caption__contains=a"), ("GET", "/views?name__startswith=a")),
        *(("GET", "/images?caption%5F%5Fregex=x"), ("GET", "/images?%71=lung"), ("GET", "/views/0123")),
    ],
)
def test_costly_reads_are_limited(method: str, address: str) -> None:
    assert _statuses(method, address, rate_limit_reads_per_minute=2) == [200, 200, 429]
    assert _statuses(method, address, rate_limit_per_minute=2) == [200] * 3


@pytest.mark.parametrize(
    "address", ["/", "/images?modality=CT", "/cases/MPX1007", "/images/MPX1007_synpic46719/thumbnail", "/health/ready"]
)
def test_cheap_reads_are_not_limited(address: str) -> None:
    assert _statuses("GET", address, rate_limit_reads_per_minute=2, rate_limit_per_minute=2) == [200] * 3


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_writes_and_predictions_have_a_limit_of_their_own(method: str) -> None:
    assert _statuses(method, "/predict/modality", rate_limit_per_minute=2) == [200, 200, 429]
    assert _statuses(method, "/predict/modality", rate_limit_reads_per_minute=2) == [200] * 3


def test_what_any_address_can_answer_is_documented() -> None:
    limited = 0
    for path, methods in create_app(load_settings()).openapi()["paths"].items():
        address = re.sub(r"\{.*?\}", "x", path)
        for method, operation in methods.items():
            documented = set(operation["responses"])
            assert "422" in documented, f"{method} {path} refuses unknown parameters"
            if "requestBody" in operation:
                assert {"413", "415"} <= documented, f"{method} {path} refuses bodies"
            names = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
            limits = {"rate_limit_per_minute": 1, "rate_limit_reads_per_minute": 1}
            for query in ("", *(f"?{name}=1" for name in names if "__" in name or name in ("q", "sample"))):
                if 429 in _statuses(method.upper(), address + query, **limits):
                    assert "429" in documented, f"{method} {path}"
                    limited += 1
                    break
    assert limited > 10
