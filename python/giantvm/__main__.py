"""`python -m giantvm` is the command `giantvm`."""

import sys

from giantvm.cli import main

sys.exit(main())
