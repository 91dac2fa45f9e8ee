"""`python -m brainjanus` is `brainjanus`."""

import sys

from brainjanus.cli import main

sys.exit(main())
