"""The half of `m7b bench` that needs torch: it loads and runs our engine and its peers."""
