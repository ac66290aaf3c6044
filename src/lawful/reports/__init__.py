"""Figures, tables and HTML from stored records."""
