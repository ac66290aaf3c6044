"""Laws watched during training: every change of q under its cause."""
