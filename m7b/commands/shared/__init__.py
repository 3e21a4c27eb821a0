"""What commands share: options, where texts come from, progress on stderr, questions. Knows no command."""
