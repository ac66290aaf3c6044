"""Learning as an ordinary differential equation."""
