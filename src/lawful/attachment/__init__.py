"""Put a rule on a module."""
