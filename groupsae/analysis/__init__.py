"""Numbers made from the records of a run. Imports neither torch nor plotting."""
