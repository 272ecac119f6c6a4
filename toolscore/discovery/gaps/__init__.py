"""Whether any tool fits a task, and what is missing."""
