"""Files and batches, in OpenAI's shape: many requests in a file, answered when there is room, at the batch price."""

from deepwell.server.batches.endpoints import routes
from deepwell.server.batches.store import Store
from deepwell.server.batches.worker import Worker

__all__ = ["Store", "Worker", "routes"]
