"""Reading and writing of files; Euler angles and index conventions live here alone."""
