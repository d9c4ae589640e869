"""What a user names, down to documents: recipes, files, tables, datasets of the hub."""
