"""What a run leaves on disk: snapshots, training states, lines of statistics, and the folder that holds them."""
