"""`python -m llama2c`."""

import sys

from llama2c.cli import main

sys.exit(main())
