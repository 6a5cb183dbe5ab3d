"""Everything about choosing, pure: candidates in, a configuration out."""
