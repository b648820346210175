"""Single runs: training in this process with its log, finding runs, where a model comes from."""
