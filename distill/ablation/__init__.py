"""The ablation: one teacher, many students that differ in one thing each, and what it shows.

Owns the rows, their equal budget, the finished runs and the tables. How a student is trained or
judged is elsewhere.
"""
