"""How fast is a bundle, and how much of the machine does it use?"""
