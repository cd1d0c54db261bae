"""`python -m ldvae <verb>`: the command `ldvae`, such as `torchrun` calls it."""

import sys

from ldvae.cli import main

sys.exit(main())
