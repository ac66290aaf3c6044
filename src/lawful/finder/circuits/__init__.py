"""Laws of networks that are no plain MLPs: convolutions, residual streams, recurrence, attention, normalisation."""
