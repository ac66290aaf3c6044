"""Offline data sets."""
