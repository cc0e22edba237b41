"""A tracker that appends to a CSV file; :mod:`difftrain_csv_tracker.plugin` registers it."""
