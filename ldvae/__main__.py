"""`python -m ldvae <verb>`: the command `ldvae`, such as `torchrun` calls it."""

import sys

from ldvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
