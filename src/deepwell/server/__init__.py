"""The HTTP front door: the DeepSeek API, which OpenAI clients speak too, and the chat page."""

from deepwell.server.app import create_app
from deepwell.server.run import Server, listen, serve
from deepwell.server.service import ServerLimits, Service
from deepwell.server.site import Site

__all__ = ["Server", "ServerLimits", "Service", "Site", "create_app", "listen", "serve"]
