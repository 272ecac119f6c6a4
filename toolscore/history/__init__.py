"""What happened, and what is learned from it: events, the journal, scores, errors and their repairs."""
