"""Which laws a rule has, and whether these are all."""
