"""Puts the service together: settings, lifespan, routers, error handlers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from app.api.answer_cache import AnswerCache
from app.api.errors import install_error_handlers
from app.api.middleware import BodyLimit, CountRequests, RequestContext
from app.api.ratelimit import RateLimit
from app.api.routes import (
    annotations,
    cases,
    docs,
    evaluation,
    explain,
    export,
    facets,
    health,
    images,
    metrics,
    models,
    predict,
    predict_batch,
    predict_image,
    preview,
    search,
    similar,
)
from app.api.uploads import body_limit
from app.core.settings import Settings, get_settings
from app.core.telemetry import Metrics
from app.data.client import connect, connect_async
from app.data.image_store import PictureStore
from app.data.repository import Repository
from app.data.schema import DATABASE
from app.serving.model_manager import ModelServer
from app.web.pages import install_pages

# In the order of the API reference.
ROOMS = (
    cases,
    images,
    search,
    facets,
    export,
    annotations,
    predict,
    predict_batch,
    predict_image,
    preview,
    explain,
    similar,
    models,
    evaluation,
    health,
    metrics,
    docs,
)
DESCRIPTION = """The cases and images of MedPix 2.0, and predictions of modality and anatomical location.

- **Ids** are those of the dataset: `MPX1007` for a case, `MPX1007_synpic46719` for an image.
- **Filters** are query parameters named after fields: `/images?modality=CT&location_category=Head&age__gte=60`.
  `GET /fields` lists all fields with their operators.
- **Lists** are paged: pass `next_cursor` as `cursor`, or follow the `Link` header.
- **Errors** are RFC 9457 problem documents (`application/problem+json`): `detail` says what to do.
- **Predictions** are calibrated probabilities with a decision, `confident` or `uncertain`:
  `curl -F image=@scan.png -F caption='Axial CT of the chest' http://localhost:8000/predict/location`

For research and teaching; **not for diagnosis**."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application.

    Args:
        settings: default: from the environment. ``mongo_uri`` must be set; the command line sets it
            to the embedded mongod where there is no other.
    """
    settings = settings or get_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        uri = settings.mongo_uri or "mongodb://127.0.0.1:27017"
        async with connect_async(uri, settings) as client:
            app.state.repository = Repository(client.get_default_database(DATABASE))
            with connect(uri, settings) as blocking_client:
                database = blocking_client.get_default_database(DATABASE)
                app.state.models = ModelServer(settings, database, app.state.metrics)
                app.state.models.start()
                yield
                await app.state.models.stop()

    app = FastAPI(
        title="MedPix service",
        description=DESCRIPTION,
        version=version("medpix-service"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.pictures = PictureStore(settings.dataset_dir, settings.home / "cache" / "thumbnails")
    for module in ROOMS:
        app.include_router(module.router)
    docs.install_docs(app)
    install_error_handlers(app)
    install_pages(app)
    if settings.answer_cache_mb:
        app.add_middleware(AnswerCache, max_bytes=settings.answer_cache_mb * 1024**2)
    if settings.rate_limit_per_minute:
        app.add_middleware(RateLimit, settings=settings)
    app.add_middleware(BodyLimit, limit_of=lambda path: body_limit(settings, path))
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    app.add_middleware(RequestContext)
    return app
