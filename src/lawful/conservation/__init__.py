"""Conservation laws: value, rate and exact drift."""
