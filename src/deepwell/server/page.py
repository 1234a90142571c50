"""The chat page: the files that the web build left in static/."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
NO_PAGE = "Deepwell is running. The chat page is not built; the API is at /v1, listed in /openapi.json.\n"

# The page makes its elements without HTML text, so even Trusted Types can be forbidden.
POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes(folder: Path = STATIC) -> list[Route | Mount]:
    """A route for each file and folder of the build, / for its index.html; a plain sentence if there is none."""
    index = folder / "index.html"
    if not index.is_file():
        return [Route("/", _missing)]
    routes: list[Route | Mount] = [_file("/", index)]
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            routes.append(Mount(f"/{entry.name}", StaticFiles(directory=entry)))
        else:
            # A page of its own is found without the ending: /books.
            name = entry.name if entry == index else entry.name.removesuffix(".html")
            routes.append(_file(f"/{name}", entry))
    return routes


def page_paths(folder: Path = STATIC) -> list[str]:
    """The paths of `page_routes`; those of folders end in /."""
    return [f"{route.path}/" if isinstance(route, Mount) else route.path for route in page_routes(folder)]


def _file(path: str, file: Path) -> Route:
    async def answer(_: Request) -> Response:
        return FileResponse(file, headers=HEADERS)

    return Route(path, answer)


async def _missing(_: Request) -> Response:
    return PlainTextResponse(NO_PAGE)
