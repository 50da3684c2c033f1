"""Running many cells: a cell is one run spec with one seed."""
