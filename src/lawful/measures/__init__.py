"""Alignment between a rule's signals and backpropagation's."""
