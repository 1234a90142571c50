"""The command line: `deepwell COMMAND`, one file per command; options come from options.py, values from settings.py."""
