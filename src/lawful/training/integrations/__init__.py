"""lawful inside other people's training loops, each in its own file, each needing its own package."""
