"""Recipes as people write them: YAML in and out, what each method takes, where models lie."""
