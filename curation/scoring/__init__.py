"""What one sample is worth, and what is kept of it so that its copies can be found."""
