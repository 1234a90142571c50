"""The command line: `deepwell COMMAND`, one file per command. `main.py` finds the command; options come from options.py."""
