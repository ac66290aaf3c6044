"""Papers as claims that a program checks."""
