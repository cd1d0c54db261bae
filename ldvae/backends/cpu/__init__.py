"""Training and evaluation steps on a CPU, compiled by numba.

Genes are processed in blocks of `BLOCK` (a tile: all cells of the minibatch by one block). The order of every sum is
independent of the number of threads, and so are the results.

Notes
-----
For nb with mean mu, the terms at x = 0 are needed for every gene, the others only for nonzero counts::

    log p(x) = -theta log1p(mu / theta)                              every gene
               + x (log mu - log(theta + mu))                        nonzero counts
               + log Gamma(x + theta) - log Gamma(theta) - log x!    nonzero counts

and log Gamma(x + theta) - log Gamma(theta) is the sum of log(theta + k), k < x, for the small integers that counts are.
The decoder is linear in u, so the batch norm of gene g follows from the mean m and the covariance C of u over the
minibatch: mean w_g'm, variance w_g'C w_g.
"""
