"""From a recipe file to the checked, resolved options of each stage."""
