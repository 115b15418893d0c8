"""What survives the end of the process: accepted requests, results, and the state of runs."""
