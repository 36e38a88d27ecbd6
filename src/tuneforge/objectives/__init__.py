"""What is learnt: Lightning modules by the names of the recipes."""
