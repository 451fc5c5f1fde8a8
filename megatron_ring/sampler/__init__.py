"""Generation inside the training process, on the live training weights, under the training layout."""
