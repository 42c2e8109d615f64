"""A name -> a ready network."""
