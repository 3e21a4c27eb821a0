"""One thin file per subcommand: parse the options, compose the parts, show what they say."""
