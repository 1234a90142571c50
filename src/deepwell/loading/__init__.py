"""A model on disk to something that runs: identity, packing, packed copies, memory."""
