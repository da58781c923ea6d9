"""Loading text towers and tokenizers."""
