"""Where, for whom and how talkatively a server answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from deepwell.options import LogFormat, RequestLog
from deepwell.server.request_log import Noted


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around the endpoints.

    `host`: the name or address under which it was asked to listen. `allow_hosts`: more names that it answers to; * for
    every name. `allow_origins`: sites whose pages may ask. `base_path`: "" or a path such as /deepwell, under which
    everything is. `log`: which requests get a line on standard error, `log_format` as what; `tell` is told of each at
    its end. `data`: the folder of files and batches, None to keep none.
    """

    host: str = "127.0.0.1"
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    base_path: str = ""
    log: RequestLog = "requests"
    log_format: LogFormat = "text"
    tell: Callable[[Noted], None] | None = None
    data: Path | None = None
