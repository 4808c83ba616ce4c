"""What matters for this dataset: settings of a recipe tried against each other on validation data, by successive halving."""
