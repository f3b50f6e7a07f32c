"""One module per verb. `run` does stages in order; `context` holds what they share in memory."""
