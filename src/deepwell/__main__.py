"""`python -m deepwell`: the command, where its name is not on the PATH."""

import sys

from deepwell.cli.main import main

sys.exit(main())
