"""The search for each task's head: probes of every depth, teachers, students, and what it all cost."""
