"""Which of our tools fit a task."""
