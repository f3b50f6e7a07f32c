"""A type for each JSON file of a run. Writers build it, readers get it; its path is a class attribute."""
