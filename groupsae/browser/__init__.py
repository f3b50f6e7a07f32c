"""A folder of pages that shows every latent of a run: opens from a file, asks no network, needs no build step."""
