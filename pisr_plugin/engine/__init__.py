"""From a recipe to trained stages and their figures."""
