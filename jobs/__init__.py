"""One thin entry point a job; what ``ray job submit`` runs."""
