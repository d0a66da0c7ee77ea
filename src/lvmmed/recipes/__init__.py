"""The only place where all parts meet: a run is a function here."""
