"""A Flower app as its users write them; nothing in it knows of Sprachbund."""
