"""What each module type is: its weight, its out-slices and its in-slices."""
