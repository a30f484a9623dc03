"""The page that shows what a selection kept, what it dropped, and why."""
