"""The pages at `/` and at `/docs`, and the endpoint that only the first needs: the last deployments.

Each page is three files of this package. It loads nothing from elsewhere, and its policy forbids browsers to.
"""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from onetrunk.serving.front.page.deployments import last_deployments
from onetrunk.serving.front.service import Service

_FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/docs.css": ("docs.css", "text/css"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    # No inline script or style, nothing from elsewhere, and no frame around the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A new version of the package is a new page.
    "Cache-Control": "no-cache",
}


class Page:
    """The routes of the pages."""

    def __init__(self, service: Service, repository: Path | None) -> None:
        """Read the files.

        Args:
            service: What counts requests, and turns failures into answers.
            repository: The repository that is served; None if the front does not know it, and so no deployments.
        """
        self._service = service
        self._repository = repository
        folder = Path(__file__).parent
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            *(Route(path, self.file, methods=["GET"]) for path in self._files),
            Route("/v1/deployments", self._service.counted(self.deployments), methods=["GET"]),
        ]

    async def file(self, request: Request) -> Response:
        """Return a file of a page."""
        content, kind = self._files[request.url.path]
        return Response(content, media_type=kind, headers=HEADERS)

    async def deployments(self, request: Request) -> Response:
        """Return the last deployments, the newest first; null if the front does not know the repository."""
        found = None
        if self._repository is not None:
            found = await to_thread.run_sync(last_deployments, self._repository)
        return JSONResponse({"deployments": found})
