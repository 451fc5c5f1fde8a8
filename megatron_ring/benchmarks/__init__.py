"""Published benchmarks: loaders of their public files, prompt forms, scorers where rewards/ has none, metrics. Imports
rewards/ and errors alone, and no torch. Rows come from the caller, who reads the files."""
