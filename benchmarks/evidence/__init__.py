"""What the selections are worth: the archives that the evidence is measured on, and the experiments."""
