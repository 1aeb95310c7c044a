"""Ways to distil a teacher into a student, each a module behind one interface."""
