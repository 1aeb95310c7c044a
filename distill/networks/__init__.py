"""The networks of teacher, student and discriminator, and how they are called."""
