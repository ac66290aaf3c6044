"""Learning as an ordinary differential equation: the field of a rule, its solvers, and its exact reductions."""
