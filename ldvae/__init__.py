"""Linearly decoded variational autoencoder for single-cell counts, and gene programs from it."""
