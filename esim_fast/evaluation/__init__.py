"""What a model got right and wrong, for people to look at."""
