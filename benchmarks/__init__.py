"""How fast the suite is, measured against the published order of work and against the teacher."""
