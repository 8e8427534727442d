"""Creates the FastAPI application: settings, lifespan, routers, error handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Final

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from pymongo.errors import PyMongoError

from app.api.deps import check_parameters
from app.api.errors import install_error_handlers
from app.api.middleware import BodyLimit, CountRequests, Failures, ForwardedPrefix, RequestContext
from app.api.ratelimit import RateLimit
from app.api.routes import (
    annotations,
    bulk,
    cases,
    docs,
    evaluation,
    explain,
    export,
    facets,
    health,
    images,
    models,
    predict,
    predict_batch,
    predict_image,
    preview,
    prometheus,
    search,
    similar,
    views,
)
from app.api.trusted_hosts import TrustedHosts
from app.api.uploads import body_limit
from app.core.disk_cache import DiskCache
from app.core.exceptions import ApiError
from app.core.settings import ConfigurationError, Settings
from app.core.telemetry import Metrics
from app.data.annotations import Annotations
from app.data.client import connect, connect_async
from app.data.image_store import ImageStore
from app.data.repository import Repository
from app.data.saved_views import SavedViews
from app.data.schema import DATABASE
from app.export.export_files import ExportFiles
from app.serving.model_manager import ModelManager
from app.web.pages import install_pages

logger = logging.getLogger(__name__)

# In the order of the API reference.
ROUTERS = (
    cases,
    images,
    bulk,
    search,
    facets,
    export,
    views,
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
    prometheus,
    docs,
)
_TRIM_EVERY_S: Final = 300.0
# What pages of other origins may read beside the body; ranged reads need those of the content.
EXPOSED_HEADERS: Final = (
    *("Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "Idempotent-Replayed"),
    *("Link", "Location", "Retry-After", "Server-Timing", "X-Cache", "X-Dataset-Version", "X-Explained-Label"),
    *("X-Explanation-Method", "X-Request-ID", "X-View-Dataset-Version"),
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


async def _prepare_search(repository: Repository) -> None:
    """Build the search index at start, so that the first query does not wait for it."""
    with suppress(PyMongoError, ApiError):  # the first query tries again, and answers each fault
        await repository.prepare_search()


async def _trim_cache(cache: DiskCache, metrics: Metrics) -> None:
    """Keep the cache folder within its budget for as long as the application runs."""
    while True:
        try:
            metrics.disk_cache(await asyncio.to_thread(cache.trim))
        except Exception:  # whatever it was, the next trim may succeed
            logger.exception("the cache folder %s cannot be trimmed", cache.folder)
        await asyncio.sleep(_TRIM_EVERY_S)


def create_app(settings: Settings) -> FastAPI:
    """The application.

    Args:
        settings: ``mongo_uri`` must be set when the application starts; the command line sets it to the embedded
            mongod where there is no other.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        uri = settings.mongo_uri
        if uri is None:
            raise ConfigurationError("MEDPIX_MONGO_URI is not set.")
        async with connect_async(uri, settings) as client:
            repository = app.state.repository = Repository(client.get_default_database(DATABASE), settings.cache_dir)
            app.state.annotations = Annotations(client.get_default_database(DATABASE))
            app.state.saved_views = SavedViews(client.get_default_database(DATABASE))
            cache = DiskCache(settings.cache_dir, settings.cache_max_mb * 1024**2)
            app.state.export_files = ExportFiles(cache)
            with connect(uri, settings) as blocking_client:
                database = blocking_client.get_default_database(DATABASE)
                app.state.models = ModelManager(settings, database, app.state.metrics)
                app.state.models.start()
                tasks = [
                    asyncio.create_task(_prepare_search(repository)),
                    asyncio.create_task(_trim_cache(cache, app.state.metrics)),
                ]
                yield
                for task in tasks:
                    task.cancel()
                await app.state.models.stop()
            await app.state.export_files.close()
            await repository.close()

    app = FastAPI(
        title="MedPix service",
        description=DESCRIPTION,
        version=version("medpix-service"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # The names of the functions of generated clients: those of our own functions.
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.image_store = ImageStore(settings.dataset_dir, settings.cache_dir / "thumbnails")
    for module in ROUTERS:
        app.include_router(module.router, dependencies=[Depends(check_parameters)])
    docs.install_docs(app)
    install_error_handlers(app)
    install_pages(app)
    if settings.rate_limit_per_minute or settings.rate_limit_reads_per_minute:
        app.add_middleware(RateLimit, settings=settings)
    app.add_middleware(BodyLimit, limit_of=lambda path: body_limit(settings, path))
    app.add_middleware(Failures)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(TrustedHosts, hosts=settings.trusted_hosts)
    app.add_middleware(ForwardedPrefix, prefix=settings.root_path)
    app.add_middleware(CountRequests, metrics=app.state.metrics, log=settings.log_format == "json")
    app.add_middleware(RequestContext)
    return app
