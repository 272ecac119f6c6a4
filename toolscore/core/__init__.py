"""The words that everybody speaks: errors, nouns, JSON-RPC frames, names, redaction, channels. Holds no state."""
