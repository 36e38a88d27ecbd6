"""Every choice a user can make: one folder = one group, one file = one option."""
