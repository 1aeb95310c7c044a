"""From a teacher that needs many steps to a student that needs one."""
